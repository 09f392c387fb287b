"""LoRA files: small changes to the denoiser's layers, read whole or refused, added to its weights.

A LoRA gives some linear layers a product of two thin matrices, scale * up @ down (LoRA, section 4.1
of arXiv:2106.09685); LyCORIS' LoKr gives them a Kronecker product. Which names are understood is in
`lora_keys`. Every key, shape and number is checked before anything is added.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from petzval.errors import CheckpointError
from petzval.models.mmdit import MMDiTConfig
from petzval.weights.lora_keys import OTHER_KINDS, LayerNames, Role, is_for_text_encoder
from petzval.weights.lora_settings import ADAPTER_FILE, LoraSettings, read_settings
from petzval.weights.manifest import expected_tensors
from petzval.weights.recognition import articled, homes
from petzval.weights.tensors import TensorSource, file_sha256

_HINT = (
    "a LoRA of this model has keys such as "
    "transformer.transformer_blocks.0.attn.img_qkv.lora_A.weight"
)
_OTHER_MODEL = "the LoRA was made for another model, or for another size of this one"
_Shape = tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LowRank:
    """scale * up @ down."""

    down: Float[Tensor, "rank inputs"]
    up: Float[Tensor, "outputs rank"]
    scale: float = 1.0

    @property
    def rank(self) -> int:
        """Columns of `up`, rows of `down`."""
        return self.down.shape[0]

    @property
    def num_elements(self) -> int:
        """Numbers in both halves."""
        return self.down.numel() + self.up.numel()

    def product(self, device: torch.device | str) -> Float[Tensor, "outputs inputs"]:
        """The change of the layer's weight, in float32."""
        return self.scale * (self.up.to(device).float() @ self.down.to(device).float())

    def apply(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        """What the change adds to the layer's output: the same product, never written out."""
        return self.scale * ((x @ self.down.T) @ self.up.T)

    def to(self, device: torch.device, dtype: torch.dtype) -> LowRank:
        """The same with its halves elsewhere and of another type."""
        return replace(self, down=self.down.to(device, dtype), up=self.up.to(device, dtype))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Kronecker:
    """scale * left ⊗ right (LoKr of LyCORIS, arXiv:2309.14859)."""

    left: Float[Tensor, "a b"]
    right: Float[Tensor, "c d"]
    scale: float = 1.0

    @property
    def num_elements(self) -> int:
        """Numbers in both factors."""
        return self.left.numel() + self.right.numel()

    def product(self, device: torch.device | str) -> Float[Tensor, "ac bd"]:
        """The change of the layer's weight, in float32."""
        return self.scale * torch.kron(
            self.left.to(device).float(), self.right.to(device).float().contiguous()
        )

    def apply(self, x: Float[Tensor, "... bd"]) -> Float[Tensor, "... ac"]:
        """What the change adds to the layer's output; x is cut to [b, d]: left x rightᵀ."""
        parts = x.unflatten(-1, (self.left.shape[1], self.right.shape[1]))
        return self.scale * (self.left @ (parts @ self.right.T)).flatten(-2)

    def to(self, device: torch.device, dtype: torch.dtype) -> Kronecker:
        """The same with its factors elsewhere and of another type."""
        return replace(self, left=self.left.to(device, dtype), right=self.right.to(device, dtype))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LayerChange:
    """What a file does to one layer.

    Attributes:
        shape: outputs and inputs of the layer.
        pieces: each with the row it begins at; query, key and value that were apart are stacked.
    """

    shape: _Shape
    pieces: tuple[tuple[int, LowRank | Kronecker], ...]

    @property
    def num_elements(self) -> int:
        """Numbers in all pieces."""
        return sum(piece.num_elements for _, piece in self.pieces)

    def product(self, device: torch.device | str = "cpu") -> Float[Tensor, "outputs inputs"]:
        """The change of the layer's weight, in float32; rows that no piece covers are zero."""
        total = torch.zeros(self.shape, device=device)
        for first, piece in self.pieces:
            product = piece.product(device)
            total[first : first + product.shape[0]] += product
        return total

    def apply(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        """What the change adds to the layer's output for an input."""
        total = x.new_zeros(*x.shape[:-1], self.shape[0])
        for first, piece in self.pieces:
            added = piece.apply(x)
            total[..., first : first + added.shape[-1]] += added
        return total

    def to(self, device: torch.device, dtype: torch.dtype) -> LayerChange:
        """The same with its numbers elsewhere and of another type."""
        moved = tuple((first, piece.to(device, dtype)) for first, piece in self.pieces)
        return replace(self, pieces=moved)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Lora:
    """A whole LoRA, checked against one architecture.

    Attributes:
        path: as it was named.
        sha256: of the file; where PEFT's settings beside it decide the scale, of both in a row.
        changes: layer → what is added to its weight.
    """

    path: Path
    sha256: str
    changes: Mapping[str, LayerChange]

    @property
    def name(self) -> str:
        """Of the file or folder, without the folders above it."""
        return Path(os.path.abspath(self.path)).name


def changed_layers(loras: Sequence[tuple[Lora, float]]) -> frozenset[str]:
    """The layers that LoRAs change, each times its number."""
    return frozenset(layer for lora, number in loras if number != 0 for layer in lora.changes)


def read_lora(path: str | Path, config: MMDiTConfig) -> Lora:
    """Read a LoRA of any family for a denoiser of this architecture.

    Args:
        path: a safetensors file, or a folder as PEFT writes it.
        config: of the denoiser.

    Raises:
        CheckpointError: naming file and key: not safetensors, damaged, a key that belongs to
            nothing, a missing half, a wrong shape, ranks that differ, a number that is not finite.
        ConfigError: PEFT's settings are damaged.
    """
    path = Path(path)
    file = lora_file(path)
    source = TensorSource.open(file)
    shapes = layer_shapes(config)
    groups = _group(source, LayerNames(shapes))
    settings = read_settings(file)
    parts = {
        place: _Part(file=file, source=source, keys=keys, shape=_part_shape(shapes, place))
        for place, keys in groups.items()
    }
    for part in parts.values():
        part.check()
    pieces: dict[str, list[tuple[int, LowRank | Kronecker]]] = {}
    for (layer, third), part in parts.items():
        first = (third or 0) * part.shape[0]
        pieces.setdefault(layer, []).append((first, part.read(layer, settings)))
    source.close()
    changes = {
        layer: LayerChange(shape=shapes[layer], pieces=tuple(each))
        for layer, each in pieces.items()
    }
    return Lora(path=path, sha256=_digest(file, settings.config_file), changes=changes)


def lora_file(path: Path) -> Path:
    """The file itself; in a folder, PEFT's, or the only safetensors file there.

    Raises:
        CheckpointError: nothing there, or several files and none of PEFT's.
    """
    if not path.is_dir():
        return path
    if (path / ADAPTER_FILE).exists():
        return path / ADAPTER_FILE
    files = sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        raise CheckpointError(
            f"{path}: expected {ADAPTER_FILE} or one safetensors file, found {len(files)}",
            "name the file itself",
        )
    return files[0]


def lora_sha256(path: Path) -> str:
    """`Lora.sha256` without reading the numbers.

    Raises:
        CheckpointError, ConfigError: as `read_lora`, for file and settings.
    """
    file = lora_file(path)
    return _digest(file, read_settings(file).config_file)


def layer_shapes(config: MMDiTConfig) -> dict[str, _Shape]:
    """Linear layers of a denoiser → outputs and inputs."""
    shapes: dict[str, _Shape] = {}
    for key, tensor in expected_tensors(config).items():
        if key.endswith(".weight") and len(tensor.shape) == 2:
            shapes[key.removesuffix(".weight")] = (tensor.shape[0], tensor.shape[1])
    return shapes


def _part_shape(shapes: Mapping[str, _Shape], place: tuple[str, int | None]) -> _Shape:
    outputs, inputs = shapes[place[0]]
    return (outputs if place[1] is None else outputs // 3), inputs


def _digest(file: Path, config_file: Path | None) -> str:
    if config_file is None:
        return file_sha256(file)
    return hashlib.sha256(file.read_bytes() + config_file.read_bytes()).hexdigest()


def _group(
    source: TensorSource, names: LayerNames
) -> dict[tuple[str, int | None], dict[Role, str]]:
    """Keys by layer and third, then by what they are to it."""
    [file] = source.files
    if not len(source):
        raise CheckpointError(f"{file}: holds no tensor, so no LoRA", _HINT)
    groups: dict[tuple[str, int | None], dict[Role, str]] = {}
    unknown: list[str] = []
    for key in source:
        parsed = names.parse(key)
        if parsed is None:
            unknown.append(key)
            continue
        group = groups.setdefault((parsed.layer, parsed.third), {})
        if parsed.role in group:
            raise CheckpointError(
                f"{file}: key {key!r} says the same as {group[parsed.role]!r}", "keep one of them"
            )
        group[parsed.role] = key
    if unknown:
        raise _unknown(file, unknown, nothing_known=not groups)
    return groups


def _unknown(file: Path, keys: list[str], *, nothing_known: bool) -> CheckpointError:
    more = f" (and {len(keys) - 1:,} more)" if len(keys) > 1 else ""
    for key in keys:
        if is_for_text_encoder(key):
            return CheckpointError(
                f"{file}: key {key!r} is for a text encoder{more}; only the denoiser takes a LoRA",
                "train it without the text encoder: Lens' is frozen",
            )
    if "dora_scale" in keys[0] or "magnitude_vector" in keys[0]:
        return CheckpointError(
            f"{file}: key {keys[0]!r} is one of DoRA's magnitudes{more}, which are not read",
            "train it as a plain LoRA",
        )
    for end, kind in OTHER_KINDS.items():
        if keys[0].endswith(end):
            return CheckpointError(
                f"{file}: key {keys[0]!r} is of {kind}{more}, which is not read",
                "LoRA and LoKr are; train it as one of them",
            )
    if nothing_known and (found := homes(keys)):
        kind = next(iter(found))
        return CheckpointError(
            f"{file}: this is {articled(kind)}, not a LoRA", f"give it with --{kind}"
        )
    hint = _HINT if nothing_known else _OTHER_MODEL
    return CheckpointError(f"{file}: key {keys[0]!r} belongs to nothing in this model{more}", hint)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """The keys of one layer, or of one third of it, and the shape they must make."""

    file: Path
    source: TensorSource
    keys: Mapping[Role, str]
    shape: _Shape

    def check(self) -> None:
        """Refuse what does not make a change of the right shape; no number is read."""
        for key in self.keys.values():
            info = self.source.infos[key]
            if not info.torch_dtype.is_floating_point and key != self.keys.get("alpha"):
                raise self._error(key, f"has dtype {info.dtype}, expected a floating-point type")
        factors = [key for role, key in self.keys.items() if role.startswith("lokr")]
        if factors and self.keys.keys() & {"down", "up"}:
            raise self._error(factors[0], "stands beside a LoRA of the same layer", "keep one")
        if factors:
            self._check_kronecker()
        else:
            self._check_low_rank()
        if "alpha" in self.keys and self.source.infos[self.keys["alpha"]].num_elements != 1:
            raise self._error(self.keys["alpha"], "must be one number")

    def read(self, layer: str, settings: LoraSettings) -> LowRank | Kronecker:
        """The numbers, checked to be finite."""
        if "down" in self.keys:
            down, up = self._tensor("down"), self._tensor("up")
            return LowRank(down=down, up=up, scale=self._scale(layer, down.shape[0], settings))
        left, left_rank = self._factor("lokr_w1", "lokr_w1_a", "lokr_w1_b")
        right, right_rank = self._factor("lokr_w2", "lokr_w2_a", "lokr_w2_b")
        rank = right_rank or left_rank
        # LyCORIS scales by alpha / rank only where a factor is a product itself.
        scale = self._scale(layer, rank, settings) if rank is not None else 1.0
        return Kronecker(left=left, right=right, scale=scale)

    def _check_low_rank(self) -> None:
        missing = [half for half in ("down", "up") if half not in self.keys]
        if missing:
            key = next(iter(self.keys.values()))
            raise self._error(key, f"has no other half ({missing[0]})")
        (rank, inputs), (outputs, up_rank) = self._sizes("down"), self._sizes("up")
        if inputs != self.shape[1]:
            raise self._wrong_shape("down", f"[rank, {self.shape[1]}]")
        if outputs != self.shape[0]:
            raise self._wrong_shape("up", f"[{self.shape[0]}, rank]")
        if rank != up_rank or rank == 0:
            raise self._error(
                self.keys["up"], f"has rank {up_rank}, but {self.keys['down']!r} has rank {rank}"
            )

    def _check_kronecker(self) -> None:
        left = self._factor_shape("lokr_w1", "lokr_w1_a", "lokr_w1_b")
        right = self._factor_shape("lokr_w2", "lokr_w2_a", "lokr_w2_b")
        made = (left[0] * right[0], left[1] * right[1])
        if made != self.shape:
            key = next(key for role, key in self.keys.items() if role.startswith("lokr"))
            raise self._error(
                key, f"makes a change of {list(made)}, expected {list(self.shape)}", _OTHER_MODEL
            )

    def _factor_shape(self, whole: Role, first: Role, second: Role) -> _Shape:
        given = [role for role in (whole, first, second) if role in self.keys]
        if given == [whole]:
            return self._sizes(whole)
        if given != [first, second]:
            key = next(iter(self.keys.values()))
            found = " and ".join(given) or "neither"
            raise self._error(
                key, f"needs either {whole} or both {first} and {second}; there is {found}"
            )
        (outputs, rank), (second_rank, inputs) = self._sizes(first), self._sizes(second)
        if rank != second_rank or rank == 0:
            raise self._error(
                self.keys[second],
                f"has rank {second_rank}, but {self.keys[first]!r} has rank {rank}",
            )
        return outputs, inputs

    def _factor(self, whole: Role, first: Role, second: Role) -> tuple[Tensor, int | None]:
        """A factor, and its rank where it is a product itself."""
        if whole in self.keys:
            return self._tensor(whole), None
        left, right = self._tensor(first), self._tensor(second)
        return left @ right, right.shape[0]

    def _scale(self, layer: str, rank: int, settings: LoraSettings) -> float:
        if "alpha" in self.keys:
            return float(self._tensor("alpha").reshape(())) / rank
        return settings.scale(layer, rank)

    def _sizes(self, role: Role) -> _Shape:
        shape = self.source.infos[self.keys[role]].shape
        if len(shape) != 2:
            raise self._wrong_shape(role, "two dimensions")
        return shape[0], shape[1]

    def _tensor(self, role: Role) -> Tensor:
        key = self.keys[role]
        tensor = self.source.read(key).float()
        if not bool(torch.isfinite(tensor).all()):
            raise self._error(key, "holds a number that is not finite", "train it again")
        return tensor

    def _wrong_shape(self, role: Role, expected: str) -> CheckpointError:
        key = self.keys[role]
        shape = list(self.source.infos[key].shape)
        return self._error(key, f"has shape {shape}, expected {expected}", _OTHER_MODEL)

    def _error(self, key: str, what: str, hint: str = "the file is damaged") -> CheckpointError:
        return CheckpointError(f"{self.file}: key {key!r} {what}", hint)


def changed_weight(
    layer: str, weight: Tensor, used: Sequence[tuple[Lora, float]], dtype: torch.dtype
) -> Tensor:
    """A layer's weight with LoRAs added in float32, in a dtype; the one that is given stays.

    Args:
        layer: its name in the denoiser.
        weight: [out, in], as stored.
        used: LoRAs with the number that each is multiplied by.
        dtype: of the result.

    Raises:
        CheckpointError: it is not finite any more.
    """
    changed = weight.detach().float().clone()
    for lora, number in used:
        if layer in lora.changes:
            changed += number * lora.changes[layer].product(weight.device)
    changed = changed.to(dtype)
    if not bool(torch.isfinite(changed).all()):
        names = ", ".join(lora.name for lora, _ in used)
        raise CheckpointError(
            f"{names}: the weights of {layer} are not finite any more", "lower its weight"
        )
    return changed
