"""The variants of Lens by name: how each wants to be used, and where its weights are looked for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import petzval
from petzval.config import from_mapping, read_json, setting, to_mapping
from petzval.errors import CheckpointError, ConfigError, RequestError
from petzval.inference.parts import NO_PARTS, SUFFIX, Parts, read_parts
from petzval.inference.paths import user_path
from petzval.inference.recipe import MAX_GUIDANCE, MAX_STEPS
from petzval.resolution import PRESETS
from petzval.weights.hub_cache import snapshots
from petzval.weights.registry import Mirror, mirrors

MODELS_VARIABLE = "PETZVAL_MODELS"
"""Environment variable that names a folder of checkpoint folders."""

CARD = "petzval.json"
"""Optional file of a checkpoint: its name, and the settings it wants; `Defaults` says which."""

DEFAULT_MODEL = "mini-turbo"
"""What is loaded where no model is named."""

_NAME_LIMIT = 80

_LAYOUT_FILE = "model_index.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Defaults:
    """What a checkpoint wants where a request does not say.

    Attributes:
        steps: sampling steps.
        guidance: scale of classifier-free guidance; 1 runs without.
        base: family of preset sizes, a key of `resolution.PRESETS`.
    """

    steps: int = setting(20, minimum=1, maximum=MAX_STEPS)
    guidance: float = setting(5.0, minimum=0, maximum=MAX_GUIDANCE)
    base: int = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """A published or shipped checkpoint.

    Attributes:
        repository: where it was published; it and its mirrors are looked up in Hugging Face's
            local cache.
        disk_bytes: of the files as published.
        memory: what it takes to run, in words.
    """

    name: str
    title: str
    defaults: Defaults
    repository: str | None
    disk_bytes: int
    memory: str


_PUBLISHED_BYTES = 22_334_041_829
_PUBLISHED_MEMORY = "24 GB of GPU memory in bfloat16"

VARIANTS: Mapping[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant(
            name="mini-turbo",
            title="the small illustrator that ships inside, distilled to four steps",
            defaults=Defaults(steps=4, guidance=1.0, base=256),
            repository=None,
            disk_bytes=31_654_192,
            memory="1 GB of memory, no GPU",
        ),
        Variant(
            name="mini",
            title="its parent, which takes its time",
            defaults=Defaults(steps=20, guidance=4.0, base=256),
            repository=None,
            disk_bytes=31_654_192,
            memory="1 GB of memory, no GPU",
        ),
        Variant(
            name="lens",
            title="Lens, after reinforcement learning",
            defaults=Defaults(steps=20, guidance=5.0),
            repository="microsoft/Lens",
            disk_bytes=_PUBLISHED_BYTES,
            memory=_PUBLISHED_MEMORY,
        ),
        Variant(
            name="lens-turbo",
            title="Lens-Turbo, distilled to four steps",
            defaults=Defaults(steps=4, guidance=1.0),
            repository="microsoft/Lens-Turbo",
            disk_bytes=_PUBLISHED_BYTES,
            memory=_PUBLISHED_MEMORY,
        ),
        Variant(
            name="lens-base",
            title="Lens-Base, as pre-trained",
            defaults=Defaults(steps=50, guidance=5.0),
            repository="microsoft/Lens-Base",
            disk_bytes=_PUBLISHED_BYTES,
            memory=_PUBLISHED_MEMORY,
        ),
    )
}
"""Name -> variant."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Located:
    """A checkpoint that is on this machine, or that is known and may be planned for.

    Attributes:
        name: of the variant; for a folder what its `petzval.json` says, or else the folder's own.
        base: the whole checkpoint; None where every part comes from its own place.
        parts: components that do not come from there.
        unfetched: in place of a base whose files are not here: what would be fetched.
    """

    name: str
    base: Path | None
    defaults: Defaults
    parts: Parts = NO_PARTS
    unfetched: Mirror | None = None

    @property
    def folder(self) -> Path:
        """The folder of a checkpoint that lies whole in one.

        Raises:
            RequestError: its parts come from several places.
        """
        if self.base is None or self.parts:
            raise RequestError(
                f"{self.name} is put together from several places, and this needs one folder",
                "write it as one first: petzval convert … --to folder",
            )
        return self.base


def locate(
    name_or_path: str | Path | None, parts: Parts = NO_PARTS, *, unfetched: bool = False
) -> Located:
    """Find a checkpoint by the name of its variant, or take the folder or TOML that is named.

    A variant is looked for inside the package, then in the folder that `PETZVAL_MODELS` names, then
    in Hugging Face's cache; so is a mirror of `petzval pull` that holds a whole checkpoint. A path
    has to look like one or exist; its defaults are those of its `petzval.json`, or of the variant
    it is called after, or those of Lens.

    Args:
        name_or_path: the checkpoint; None where `parts` name every network.
        parts: components from elsewhere, in place of the checkpoint's.
        unfetched: a published checkpoint need not be here, for nothing of it will be read.

    Raises:
        RequestError: neither a variant nor a folder; or a path with the home of an unknown user.
        CheckpointError: a variant or a mirror whose weights are not on this machine.
        ConfigError: the checkpoint's `petzval.json` is damaged.
    """
    if name_or_path is None:
        if parts.missing:
            raise RequestError(
                f"no {' and no '.join(parts.missing)} is named",
                "give a file for each network, or --model, whose others are used",
            )
        assert parts.denoiser is not None
        name = parts.denoiser.stem
        return Located(name=name, base=None, defaults=VARIANTS["lens"].defaults, parts=parts)
    located = _locate(name_or_path, unfetched)
    return replace(located, parts=parts.over(located.parts)) if parts else located


def _locate(name_or_path: str | Path, unfetched: bool, above: tuple[Path, ...] = ()) -> Located:
    text = str(name_or_path)
    variant = VARIANTS.get(text.lower())
    if variant is not None and not isinstance(name_or_path, Path):
        for folder in places(variant):
            if (folder / _LAYOUT_FILE).is_file():
                return Located(name=variant.name, base=folder, defaults=_defaults(folder, variant))
        copy = mirrors().get(variant.name)
        if unfetched and copy is not None and copy.holds == "checkpoint":
            return _unfetched(variant.name, variant, copy)
        raise _absent(variant)
    mirror = mirrors().get(text.lower())
    if mirror is not None and not Path(text).exists():
        return _locate_mirror(mirror, unfetched)
    folder = user_path(text)
    try:
        exists, is_folder = folder.exists(), folder.is_dir()
    except OSError:  # a name that no file system takes
        exists, is_folder = False, False
    if text.strip() and is_folder:
        called = folder.resolve().name
        relative = VARIANTS.get(called.lower(), VARIANTS["lens"])
        try:
            defaults, name = _defaults(folder, relative), _name(folder) or called
        except OSError as error:
            raise RequestError(
                f"{text} cannot be read: {error.strerror}",
                "it has to be a folder that you may enter",
            ) from None
        return Located(name=name, base=folder, defaults=defaults)
    if text.strip() and exists and folder.suffix.lower() == SUFFIX:
        return _from_parts_file(folder, unfetched, above)
    if text.strip() and exists:
        raise RequestError(
            f"{text} is a file; a checkpoint is a folder with {_LAYOUT_FILE}",
            "name the folder; a lone file is given with --denoiser, --encoder or --vae, or in a "
            "petzval.toml",
        )
    raise RequestError(
        f"unknown model {text[:200]!r}",
        f"models are {', '.join(VARIANTS)}, or the path of a checkpoint folder",
    )


def _from_parts_file(file: Path, unfetched: bool, above: tuple[Path, ...]) -> Located:
    """A `petzval.toml`, on top of the model that it names; `above` are those that named it."""
    here = file.resolve()
    if here in above:
        raise ConfigError(
            f"{file}: names itself as the model that it adds to",
            "name another one, or a file for each network",
        )
    said = read_parts(file)
    base = None if said.model is None else _locate(said.model, unfetched, (*above, here))
    defaults = VARIANTS["lens"].defaults if base is None else base.defaults
    if said.defaults:
        given = to_mapping(defaults) | dict(said.defaults)
        defaults = from_mapping(Defaults, given, where=f"{file}: defaults")
        _check_base(defaults, file)
    return Located(
        name=_checked_name(said.name, file),
        base=None if base is None else base.base,
        defaults=defaults,
        parts=said.parts if base is None else said.parts.over(base.parts),
        unfetched=None if base is None else base.unfetched,
    )


def places(variant: Variant) -> Iterator[Path]:
    """The folders in which a variant is looked for, in order; they need not exist."""
    if variant.repository is None:
        yield Path(petzval.__file__).parent / "assets" / variant.name
    models = os.environ.get(MODELS_VARIABLE)
    if models:
        yield user_path(models) / variant.name
    if variant.repository is not None:
        copies = [m for m in mirrors().values() if m.holds == "checkpoint"]
        named = (m.repository for m in copies if m.model == variant.name)
        for repository in dict.fromkeys((variant.repository, *named)):
            yield from snapshots(repository)


def _locate_mirror(mirror: Mirror, unfetched: bool) -> Located:
    """A checkpoint by the name of its mirror.

    Raises:
        RequestError: the mirror holds a part of a checkpoint.
        CheckpointError: it was not fetched.
    """
    if mirror.holds != "checkpoint":
        raise RequestError(
            f"{mirror.name} is a {mirror.holds} alone, not a whole checkpoint",
            f"`petzval pull {mirror.name}` prints where it lies",
        )
    for folder in snapshots(mirror.repository):
        if (folder / _LAYOUT_FILE).is_file():
            variant = VARIANTS.get(mirror.model or "", VARIANTS["lens"])
            name = _name(folder) or mirror.model or mirror.name
            return Located(name=name, base=folder, defaults=_defaults(folder, variant))
    published = VARIANTS.get(mirror.model or "")
    if unfetched and published is not None and published.repository is not None:
        return _unfetched(mirror.name, published, mirror)
    raise CheckpointError(
        f"{mirror.name} is not on this machine", f"`petzval pull {mirror.name}` fetches it"
    )


def _unfetched(name: str, variant: Variant, mirror: Mirror) -> Located:
    return Located(name=name, base=None, defaults=variant.defaults, unfetched=mirror)


def _defaults(folder: Path, variant: Variant) -> Defaults:
    """Those of the checkpoint's own card; the variant's where it has none."""
    card = folder / CARD
    if not card.is_file():
        return variant.defaults
    defaults = from_mapping(Defaults, read_json(card), where=str(card), ignore_unknown=True)
    _check_base(defaults, card)
    return defaults


def _check_base(defaults: Defaults, file: Path) -> None:
    if defaults.base not in PRESETS:
        known = ", ".join(str(base) for base in sorted(PRESETS))
        raise CheckpointError(f"{file}: base {defaults.base} is none of {known}")


def _name(folder: Path) -> str | None:
    """What the checkpoint's own card calls it; a checkpoint that moves keeps its name."""
    card = folder / CARD
    name: Any = read_json(card).get("name") if card.is_file() else None
    if name is None:
        return None
    return _checked_name(name, card)


def _checked_name(name: Any, file: Path) -> str:
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise ConfigError(f"{file}: setting 'name' must be a text on one line")
    if len(name) > _NAME_LIMIT:
        raise ConfigError(f"{file}: setting 'name' has more than {_NAME_LIMIT} characters")
    return name


def _absent(variant: Variant) -> CheckpointError:
    if variant.repository is None:
        return CheckpointError(
            f"{variant.name} is missing from this installation",
            "install the package again, with its data files",
        )
    return CheckpointError(
        f"{variant.name} is not on this machine",
        f"`petzval pull {variant.name}` fetches it; or put its folder at "
        f"${MODELS_VARIABLE}/{variant.name}, or name the folder itself",
    )
