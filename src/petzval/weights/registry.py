"""The registry of mirrors: where the weights can be fetched, under which licence, proven by what.

The original repositories of Lens are withdrawn, so what there is are copies. `mirrors.json` lists
them as data: a fact that is not known (a revision, a size, a hash) is left out there, not guessed.
A file that `PETZVAL_REGISTRY` names adds mirrors of one's own, in the same form.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Literal

from petzval.config import MEBIBYTE, from_mapping, read_json
from petzval.errors import ConfigError, RequestError

REGISTRY_VARIABLE = "PETZVAL_REGISTRY"
"""Environment variable that names a further file of mirrors."""

SUFFIXES = (".safetensors", ".gguf", ".json", ".txt")
"""What is fetched: numbers and settings. Nothing that a program could run."""

DEFAULT_REVISION = "main"
"""A branch: whatever the repository holds on the day. Used where no commit is known."""

_BUILT_IN = Path(__file__).with_name("mirrors.json")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Licence:
    """What one part of a mirror may be used for.

    Attributes:
        part: which networks it speaks of.
        name: of the licence, with what is doubtful about it.
        source: who says so.
    """

    part: str
    name: str
    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class FilePattern:
    """Files that belong to a mirror.

    Attributes:
        pattern: a path of the repository, `*`, `?` and `[…]` within one level of it.
        optional: whether a repository may be without.
    """

    pattern: str
    optional: bool = False

    def __post_init__(self) -> None:
        if not is_safe(self.pattern):
            raise ConfigError(
                f"file {self.pattern!r} is no plain path that ends in {', '.join(SUFFIXES)}"
            )

    def matches(self, path: str) -> bool:
        """Whether a path of the repository is meant; levels must agree."""
        mine, theirs = self.pattern.split("/"), path.split("/")
        return len(mine) == len(theirs) and all(map(fnmatchcase, theirs, mine))


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownFile:
    """What is known of a file beforehand, so that no server needs to be believed.

    Attributes:
        num_bytes: its length; None where it is not known.
        sha256: of its bytes, in hex; None where it is not known.
    """

    num_bytes: int | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        if self.num_bytes is not None and self.num_bytes < 0:
            raise ConfigError(f"num_bytes must be at least 0, got {self.num_bytes}")
        if self.sha256 is not None and not _SHA256.fullmatch(self.sha256):
            raise ConfigError(f"sha256 must be 64 hexadecimal digits, got {self.sha256[:80]!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Mirror:
    """One thing that can be fetched: a whole checkpoint, or a single network of one.

    Attributes:
        name: what `petzval pull` calls it.
        title: one line for people.
        holds: "checkpoint" is a folder in the published layout; the others are parts of one.
        model: the variant that it makes usable by name, where it does.
        repository: owner/name on the hub.
        revision: a commit where one is known, else "main".
        approximate_bytes: size where only its order is known; the exact one is asked for.
        provenance: where the copy comes from, and what is not known of it.
        licences: one for each part.
        files: what belongs to it.
        known: path -> what is known of that file.
    """

    name: str
    title: str
    holds: Literal["checkpoint", "denoiser", "encoder", "vae"]
    repository: str
    provenance: str
    licences: tuple[Licence, ...]
    files: tuple[FilePattern, ...]
    known: Mapping[str, KnownFile]
    model: str | None = None
    revision: str = DEFAULT_REVISION
    approximate_bytes: int | None = None

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit, which cannot change any more."""
        return _COMMIT.fullmatch(self.revision) is not None

    @property
    def is_listed(self) -> bool:
        """Whether `petzval pull` knows it by its name, and not only a caller."""
        return bool(self.licences)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    """A mirror as the file has it, with names in place of what rows share."""

    name: str
    title: str
    holds: Literal["checkpoint", "denoiser", "encoder", "vae"]
    repository: str
    provenance: str
    licences: tuple[str, ...]
    model: str | None = None
    revision: str = DEFAULT_REVISION
    approximate_bytes: int | None = None
    layout: str | None = None
    files: tuple[FilePattern, ...] = ()
    known: dict[str, KnownFile] = field(default_factory=dict[str, KnownFile])

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(f"mirror {self.name[:80]!r}: names are a-z, 0-9, dots and dashes")
        place = f"mirror {self.name!r}"
        if not _REPOSITORY.fullmatch(self.repository) or ".." in self.repository:
            raise ConfigError(f"{place}: repository {self.repository[:80]!r} is not owner/name")
        if self.revision != DEFAULT_REVISION and not _COMMIT.fullmatch(self.revision):
            raise ConfigError(
                f"{place}: revision {self.revision[:80]!r} is neither {DEFAULT_REVISION} nor a "
                "commit of 40 hexadecimal digits"
            )
        for text in (self.title, self.provenance):
            if not text.isprintable():
                raise ConfigError(f"{place}: {text[:40]!r} is not one line of text")
        if not self.licences:
            raise ConfigError(f"{place}: has no licence; none is fetched without one being named")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Registry:
    """The whole file."""

    licences: dict[str, Licence]
    mirrors: tuple[_Row, ...]
    layouts: dict[str, tuple[FilePattern, ...]] = field(
        default_factory=dict[str, tuple[FilePattern, ...]]
    )


def is_safe(path: str) -> bool:
    """Whether a path stays below its folder on every system, and is of a kind that is fetched."""
    parts = path.split("/")
    return (
        path.isprintable()
        and not set(path) & set('\\:|<>"')
        and len(path) <= 255
        and all(part.strip(" .") and not part.endswith((" ", ".")) for part in parts)
        and path.lower().endswith(SUFFIXES)
    )


def read_registry(path: Path) -> dict[str, Mirror]:
    """Name -> mirror, from a file like `mirrors.json`.

    Raises:
        ConfigError: naming the file: no JSON, an unknown or missing setting, a path that leaves
            its folder, a name given twice, a licence or layout that the file does not define.
    """
    content = read_json(path, limit_bytes=MEBIBYTE)
    registry = from_mapping(_Registry, content, where=str(path))
    found: dict[str, Mirror] = {}
    for row in registry.mirrors:
        if row.name in found:
            raise ConfigError(f"{path}: mirror {row.name!r} is listed twice")
        found[row.name] = _mirror(row, registry, f"{path}: mirror {row.name!r}")
    return found


def _mirror(row: _Row, registry: _Registry, where: str) -> Mirror:
    """A row with its licences and its layout filled in."""
    for licence in row.licences:
        if licence not in registry.licences:
            raise ConfigError(f"{where}: licence {licence!r} is not defined in this file")
    if (row.layout is None) == (not row.files):
        raise ConfigError(f"{where}: needs either a layout or files")
    if row.layout is not None and row.layout not in registry.layouts:
        raise ConfigError(f"{where}: layout {row.layout!r} is not defined in this file")
    files = row.files if row.layout is None else registry.layouts[row.layout]
    for name in row.known:
        if not is_safe(name) or not any(pattern.matches(name) for pattern in files):
            raise ConfigError(f"{where}: knows {name!r}, which is none of its files")
    return Mirror(
        name=row.name,
        title=row.title,
        holds=row.holds,
        repository=row.repository,
        provenance=row.provenance,
        licences=tuple(registry.licences[name] for name in row.licences),
        files=files,
        known=row.known,
        model=row.model,
        revision=row.revision,
        approximate_bytes=row.approximate_bytes,
    )


def mirrors() -> Mapping[str, Mirror]:
    """Every mirror by name: the built-in ones, then those of `PETZVAL_REGISTRY`, which win.

    Raises:
        ConfigError: as `read_registry`.
    """
    own = os.environ.get(REGISTRY_VARIABLE)
    if own and not Path(own).exists():
        raise ConfigError(
            f"{own}: no such file, but {REGISTRY_VARIABLE} names it",
            f"unset {REGISTRY_VARIABLE}, or have it name a registry of your own mirrors",
        )
    return {**_built_in(), **(read_registry(Path(own)) if own else {})}


def find_mirror(name: str) -> Mirror:
    """The mirror of that name.

    Raises:
        RequestError: there is none; the hint names the nearest.
        ConfigError: as `mirrors`.
    """
    known = mirrors()
    if name.lower() in known:
        return known[name.lower()]
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.4)
    raise RequestError(
        f"unknown mirror {name[:80]!r}",
        f"nearest are {', '.join(near)}" if near else "`petzval pull` lists them all",
    )


def checkpoint_of(repository: str, revision: str = DEFAULT_REVISION) -> Mirror:
    """A mirror for a repository that a person names, in the published layout; nothing is known.

    Raises:
        RequestError: the repository is not owner/name, or the revision no branch or commit.
    """
    if not _REPOSITORY.fullmatch(repository) or ".." in repository:
        raise RequestError(f"{repository[:80]!r} is neither a folder nor owner/name")
    if not re.fullmatch(r"\w[\w.-]{0,99}", revision, re.ASCII) or ".." in revision:
        raise RequestError(f"revision {revision[:80]!r} is neither a branch nor a commit")
    published = next(m for m in _built_in().values() if m.holds == "checkpoint")
    # SDNQ's copies cannot be read without these.
    names = (f"{part}/quantization_config.json" for part in ("transformer", "text_encoder"))
    settings = (FilePattern(pattern=name, optional=True) for name in names)
    return Mirror(
        name=repository,
        title="a repository by its name",
        holds="checkpoint",
        repository=repository,
        revision=revision,
        provenance="named by the caller; nothing is known of it here",
        licences=(),
        files=(*published.files, *settings),
        known={},
    )


def lora_of(
    repository: str, file: str, revision: str = DEFAULT_REVISION, *, beside: str | None = None
) -> Mirror:
    """A mirror for one LoRA's file in a repository that a person names; nothing is known of it.

    Args:
        repository: owner/name.
        file: its path there.
        revision: a branch or a commit.
        beside: path of settings that are fetched with it, where they are there.

    Raises:
        RequestError: as `checkpoint_of`, or the file is no plain path to safetensors.
    """
    if not file.endswith(".safetensors") or not is_safe(file) or set("*?[]") & set(file):
        hint = "pickles are never read; ask its author for safetensors"
        if file.endswith(".safetensors"):
            hint = "write it as the repository lists it, such as loras/ink.safetensors"
        raise RequestError(
            f"weight_name {file[:80]!r} is no plain path to a safetensors file", hint
        )
    settings = () if beside is None else (FilePattern(pattern=beside, optional=True),)
    return replace(
        checkpoint_of(repository, revision),
        title="a LoRA by its name",
        holds="denoiser",
        files=(FilePattern(pattern=file), *settings),
    )


@cache
def _built_in() -> dict[str, Mirror]:
    return read_registry(_BUILT_IN)
