"""`petzval verify`: what a checkpoint holds, and whether it is what the architecture wants.

Unlike loading, which stops at the first refusal, this goes on and reports everything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from petzval.errors import CheckpointError, ConfigError, PetzvalError
from petzval.models.gpt_oss import GptOssConfig
from petzval.models.mmdit import MMDiTConfig
from petzval.models.vae import AutoencoderConfig
from petzval.weights.checkpoint import check_fit
from petzval.weights.component import FOLDERS, examine_component, match_packing
from petzval.weights.formats import Kind
from petzval.weights.manifest import expected_tensors, find_problems
from petzval.weights.mxfp4 import NAN_SCALE
from petzval.weights.opening import open_part
from petzval.weights.published import (
    DENOISER,
    ComponentConfig,
    check_model_index,
    check_scheduler,
    check_tokenizer,
    read_denoiser_config,
    read_encoder_config,
    read_vae_config,
)
from petzval.weights.source import Source, packing_of, total_bytes
from petzval.weights.tensors import file_sha256
from petzval.weights.views import without_padding


@dataclass(frozen=True, kw_only=True, slots=True)
class FileReport:
    """One file: its name inside the checkpoint, length and SHA-256."""

    name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ComponentReport:
    """One network, as found.

    Attributes:
        name: folder of the component; where there is only one, which it is.
        num_tensors: tensors in its files.
        num_parameters: numbers in the files, also those that are no parameters of the networks
            (statistics, the encoder's final norm and head); two for each byte of MXFP4 blocks,
            scales not counted; the same of NVFP4 codes.
        num_bytes: bytes of all tensors, headers not counted.
        dtypes: tensors of each safetensors dtype.
        files: every weights file, with its hash.
        problems: differences from the architecture; empty when all is well.
    """

    name: str
    num_tensors: int = 0
    num_parameters: int = 0
    num_bytes: int = 0
    dtypes: tuple[tuple[str, int], ...] = ()
    files: tuple[FileReport, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyReport:
    """A whole checkpoint, as found; `problems` are those of the folder and of how its parts fit."""

    folder: Path
    components: tuple[ComponentReport, ...]
    problems: tuple[str, ...]

    @property
    def all_problems(self) -> tuple[str, ...]:
        """The folder's and every component's."""
        return self.problems + tuple(p for c in self.components for p in c.problems)

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.all_problems


def verify_checkpoint(
    folder: str | Path, *, hashes: bool = True, values: bool = True
) -> VerifyReport:
    """Check keys, shapes and dtypes of every component and count what is there.

    Args:
        folder: a checkpoint in the published layout.
        hashes: also hash every file (reads all of it).
        values: also look for NaN, infinities and MXFP4 scales of 255 (reads all of it).

    Raises:
        CheckpointError: only where there is no folder at all.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: expected a checkpoint folder")
    problems: list[str] = []
    for check in (check_model_index, check_scheduler, check_tokenizer):
        _collect(problems, check, folder)
    readers: tuple[tuple[Kind, Callable[[Path], ComponentConfig]], ...] = (
        ("denoiser", read_denoiser_config),
        ("encoder", read_encoder_config),
        ("vae", read_vae_config),
    )
    configs: dict[Kind, ComponentConfig] = {}
    reports: list[ComponentReport] = []
    for kind, reader in readers:
        report, config = _verify_component(folder, kind, reader, hashes=hashes, values=values)
        reports.append(report)
        if config is not None:
            configs[kind] = config
    denoiser, encoder, vae = configs.get("denoiser"), configs.get("encoder"), configs.get("vae")
    if (
        isinstance(denoiser, MMDiTConfig)
        and isinstance(encoder, GptOssConfig)
        and isinstance(vae, AutoencoderConfig)
    ):
        _collect(
            problems,
            lambda place: check_fit(str(place / DENOISER / "config.json"), denoiser, encoder, vae),
            folder,
        )
    return VerifyReport(folder=folder, components=tuple(reports), problems=tuple(problems))


def verify_component(path: str | Path, *, hashes: bool = True, values: bool = True) -> VerifyReport:
    """The same of a file or folder with one network, in any format that is read.

    Args:
        path: as `open_component` takes it.
        hashes, values: as `verify_checkpoint`; a quantised matrix is looked at decoded.

    Raises:
        CheckpointError: only where there is nothing at all.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path}: expected a checkpoint folder, or a file of one part")
    try:
        component, problems = examine_component(path)
    except (CheckpointError, ConfigError) as error:
        return VerifyReport(folder=path, components=(), problems=(_told(error),))
    source = component.source
    if values:
        problems += _bad_values(source)
    report = count_tensors(component.kind, source)
    files = [
        FileReport(
            name=file.name,
            num_bytes=file.stat().st_size,
            sha256=file_sha256(file) if hashes else "",
        )
        for file in source.files
    ]
    report = replace(report, files=tuple(files), problems=tuple(problems))
    return VerifyReport(folder=path, components=(report,), problems=())


def _verify_component(
    folder: Path,
    kind: Kind,
    reader: Callable[[Path], ComponentConfig],
    *,
    hashes: bool,
    values: bool,
) -> tuple[ComponentReport, ComponentConfig | None]:
    name = FOLDERS[kind]
    problems: list[str] = []
    config: ComponentConfig | None = None
    try:
        config = reader(folder)
    except (CheckpointError, ConfigError) as error:
        problems.append(_told(error))
    try:
        source = open_part(folder / name, kind)
    except (CheckpointError, ConfigError) as error:
        return ComponentReport(name=name, problems=(*problems, _told(error))), config
    if isinstance(config, GptOssConfig):
        config = match_packing(config, source)
    if config is not None:
        wanted = expected_tensors(config)
        source = without_padding(source, wanted)
        problems += find_problems(source, wanted)
    if values:
        problems += _bad_values(source)
    report = count_tensors(name, source)
    files = [
        FileReport(
            name=str(file.relative_to(folder)),
            num_bytes=file.stat().st_size,
            sha256=file_sha256(file) if hashes else "",
        )
        for file in source.files
    ]
    return replace(report, files=tuple(files), problems=tuple(problems)), config


def count_tensors(name: str, source: Source) -> ComponentReport:
    """Counts from the headers alone; a quantised tensor counts as its format."""
    dtypes: dict[str, int] = {}
    num_parameters = 0
    for key, info in source.infos.items():
        dtype = packing_of(info) or info.dtype
        dtypes[dtype] = dtypes.get(dtype, 0) + 1
        if key.endswith(("_blocks", "_codes")):
            num_parameters += 2 * info.num_elements
        elif not key.endswith(("_scales", "_tiles", "_factors")):
            num_parameters += info.num_elements
    return ComponentReport(
        name=name,
        num_tensors=len(source),
        num_parameters=num_parameters,
        num_bytes=total_bytes(source),
        dtypes=tuple(sorted(dtypes.items())),
    )


def _bad_values(source: Source) -> list[str]:
    """Numbers that no network can use, read tensor by tensor."""
    problems: list[str] = []
    for key, info in source.infos.items():
        is_float, is_scale = info.torch_dtype.is_floating_point, key.endswith("_scales")
        if not is_float and not is_scale and not key.endswith("_tiles"):
            continue
        try:
            tensor = source.read(key)
        except CheckpointError as error:  # what decodes it looks at its scales
            problems.append(error.message)
            continue
        if is_float:
            wide = tensor.float() if tensor.element_size() == 1 else tensor
            count = int((~torch.isfinite(wide)).sum())
            fault = "NaN or infinite numbers"
        else:
            count = int((tensor == NAN_SCALE).sum()) if is_scale else 0
            fault = f"MXFP4 scales of {NAN_SCALE}, which stands for NaN"
        if count:
            problems.append(f"{info.file}: key {key!r} holds {count:,} {fault}")
    source.close()
    return problems


def _collect(problems: list[str], check: Callable[[Path], None], folder: Path) -> None:
    try:
        check(folder)
    except (CheckpointError, ConfigError) as error:
        problems.append(_told(error))


def _told(error: PetzvalError) -> str:
    """What is wrong, and what to do about it, in one line."""
    return f"{error.message}; {error.hint}" if error.hint else error.message
