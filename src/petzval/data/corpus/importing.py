"""Bring a source's pictures into the manifest: each once, in parts, again without harm."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from petzval.data.assets import Progress
from petzval.data.corpus.manifest import Corpus, base_table, read_parquet, write_whole
from petzval.data.corpus.sources import Item, Refusal, Source
from petzval.data.decode import Limits, RefusedPicture, read_bytes
from petzval.errors import DataError

MAX_NAME_BYTES = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What an import did.

    Attributes:
        num_new: pictures that are now in the corpus.
        num_present: pictures that were there from this very place.
        num_duplicates: the same bytes from another place; not in the corpus twice.
        refusals: what was left out, or is incomplete; also in `refusals/<source>.json`.
    """

    num_new: int
    num_present: int
    num_duplicates: int
    refusals: tuple[Refusal, ...]


class _Known:
    """Ids of the corpus, with the place each came from, as digests."""

    def __init__(self, corpus: Corpus) -> None:
        self._places: dict[bytes, bytes] = {}
        for part in corpus.parts():
            columns = ["id", "source", "path", "member"]
            for row in read_parquet(corpus.manifest_path(part), columns).to_pylist():
                self.add(row)

    def add(self, row: dict[str, Any]) -> bytes | None:
        """The place this id came from if it is known; else it is now."""
        key, place = bytes.fromhex(row["id"]), self.place(row)
        found = self._places.setdefault(key, place)
        return None if found is place else found

    @staticmethod
    def place(row: dict[str, Any]) -> bytes:
        """A digest of where a row's picture lies."""
        words = "\0".join((row["source"], row["path"], row["member"]))
        return hashlib.blake2b(words.encode(), digest_size=16).digest()


def import_source(
    corpus: Corpus,
    source: Source,
    *,
    limits: Limits = Limits(),  # noqa: B008
    progress: Progress | None = None,
) -> Imported:
    """Append a source's pictures to the manifest.

    Nothing happens to pictures that are there already, also where their caption has changed. An
    import that was killed goes on with the part it was at; the parts are the same as without.
    Every picture is read once, to know it by its bytes. The ids of the whole corpus are held in
    memory, about 200 bytes each: beyond a hundred million pictures, make several corpora.

    Raises:
        DataError: the source or the corpus is damaged, another program is writing, or the source's
            name cannot be that of a file.
    """
    _check_name(source.name)
    counts = {"num_new": 0, "num_present": 0, "num_duplicates": 0}
    refusals: list[Refusal] = []
    rows: list[dict[str, Any]] = []
    with corpus.writing():
        known = _Known(corpus)
        for row in _rows(corpus, source, limits, refusals, progress):
            found = known.add(row)
            if found is None:
                counts["num_new"] += 1
                rows.append(row)
            else:
                same = found == known.place(row)
                counts["num_present" if same else "num_duplicates"] += 1
            if len(rows) == corpus.settings.rows_per_part:
                corpus.append(base_table(rows))
                rows = []
        if rows:
            corpus.append(base_table(rows))
        _write_refusals(corpus, source.name, refusals)
    return Imported(**counts, refusals=tuple(refusals))


def _rows(
    corpus: Corpus,
    source: Source,
    limits: Limits,
    refusals: list[Refusal],
    progress: Progress | None,
) -> Iterator[dict[str, Any]]:
    """Manifest rows of what can be read."""
    step = 0
    for item in source.items(corpus.folder):
        if isinstance(item, Refusal):
            refusals.append(item)
            continue
        try:
            yield _row(corpus.folder, source.name, item, limits)
        except RefusedPicture as error:
            path = str(item.path).encode("utf-8", "backslashreplace").decode()
            refusals.append(Refusal(path=path, member=item.member, reason=error.reason))
        if progress is not None and item.step != step:
            step = item.step
            progress("import", step, source.num_steps)


def _row(folder: Path, name: str, item: Item, limits: Limits) -> dict[str, Any]:
    inside = item.path.is_relative_to(folder)
    path = str(item.path.relative_to(folder) if inside else item.path)
    if not path.isprintable():
        raise RefusedPicture("its name is not printable UTF-8")
    data = read_bytes(item.path, limits, item.offset, item.num_bytes)
    return {
        "id": hashlib.sha256(data).hexdigest(),
        "source": name,
        "path": path,
        "member": item.member,
        "offset": item.offset,
        "num_bytes": len(data),
        "caption": item.caption,
        "licence": item.licence,
        "metadata": _as_json(item.metadata),
    }


def _as_json(metadata: Mapping[str, Any]) -> str:
    """One text for one value; what is not finite becomes null, for which JSON has a word."""
    text = json.dumps(metadata, sort_keys=True, default=str)
    finite: Any = json.loads(text, parse_constant=lambda _: None)
    return json.dumps(finite, sort_keys=True)


def _check_name(name: str) -> None:
    """A source's name stands in the manifest and the data card, and names a file or folder."""
    usable = name not in ("", ".", "..") and name.isprintable() and not {"/", "\\"} & set(name)
    if not usable or len(name.encode()) > MAX_NAME_BYTES:
        raise DataError(
            f"a source cannot be called {name[:40]!r}",
            f"give it a name of at most {MAX_NAME_BYTES} bytes, without / and \\",
        )


def _write_refusals(corpus: Corpus, source: str, refusals: list[Refusal]) -> None:
    path = corpus.folder / "refusals" / f"{source}.json"
    if not refusals:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(exist_ok=True)
    lines = ",\n".join(json.dumps(asdict(refusal)) for refusal in sorted(refusals))
    write_whole(path, f"[\n{lines}\n]\n".encode())
