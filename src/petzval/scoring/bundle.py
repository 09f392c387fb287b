"""The trained scorer on disk: one safetensors file and one JSON file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from petzval.errors import CheckpointError
from petzval.scoring.backbone import PictureFeatures, load_efficientnet
from petzval.scoring.detector import Detector
from petzval.scoring.dual_encoder import DualEncoder, PictureHead
from petzval.scoring.judge import Judge, JudgeRules

SHIPPED = Path(__file__).resolve().parent.parent / "assets" / "scorers"
WEIGHTS, SETTINGS = "scorers.safetensors", "scorers.json"
FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerBundle:
    """Everything a `Judge` is built from, apart from the frozen backbone.

    Attributes:
        table: unit-length embeddings [concepts, embedding], in the order of `concepts`.
        concepts: English name by concept id.
        styles: names of the drawing styles, in the order of the head's logits.
        side: height and width of the cut-outs the head was trained on.
    """

    detector: Detector
    head: PictureHead
    table: Tensor
    concepts: dict[str, str]
    styles: tuple[str, ...]
    side: int
    rules: JudgeRules

    def save(self, folder: Path) -> None:
        """Write the two files; numbers are kept in half precision."""
        tensors = {f"detector.{key}": value for key, value in self.detector.state_dict().items()}
        tensors |= {f"head.{key}": value for key, value in self.head.state_dict().items()}
        tensors["table"] = self.table
        halved = {
            key: (value.half() if value.is_floating_point() else value).contiguous()
            for key, value in tensors.items()
        }
        settings = {
            "format": FORMAT,
            "detector": {"width": self.detector.width},
            "head": self.head.shape,
            "side": self.side,
            "rules": asdict(self.rules),
            "styles": list(self.styles),
            "concepts": self.concepts,
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / WEIGHTS).write_bytes(save(halved))
        text = json.dumps(settings, ensure_ascii=False, indent=1)
        (folder / SETTINGS).write_text(text + "\n", encoding="utf-8")


def load_bundle(folder: Path = SHIPPED) -> tuple[ScorerBundle, str]:
    """The bundle in a folder, and a hash of its two files.

    Raises:
        CheckpointError: a file is missing, damaged, or of another shape.
    """
    try:
        weights = (folder / WEIGHTS).read_bytes()
        settings_text = (folder / SETTINGS).read_bytes()
        tensors = load(weights)
        settings: dict[str, Any] = json.loads(settings_text)
        if settings["format"] != FORMAT:
            raise CheckpointError(f"{folder}: scorers of format {settings['format']}, not {FORMAT}")
        bundle = _build(settings, tensors)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder} holds no readable scorers: {error}",
            "reinstall petzval, or train them again: python -m petzval.evals.train_scorers",
        ) from error
    digest = hashlib.sha256(weights + settings_text).hexdigest()
    return bundle, digest


def load_judge(
    folder: Path = SHIPPED,
    *,
    backbone: Callable[[int], PictureFeatures] = load_efficientnet,
) -> Judge:
    """The scorer that ships inside, or the one in `folder`.

    Args:
        backbone: makes the frozen features for a cut-out side.

    Raises:
        CheckpointError: the files are missing or damaged.
        MissingExtraError: the package with the backbone's weights is not installed.
    """
    bundle, digest = load_bundle(folder)
    return judge_of(bundle, backbone(bundle.side), digest)


def judge_of(bundle: ScorerBundle, backbone: PictureFeatures, digest: str) -> Judge:
    """A judge of these parts; `digest` names the weights in its identity."""
    encoder = DualEncoder(backbone, bundle.head, bundle.concepts, bundle.table, bundle.styles)
    return Judge(
        bundle.detector,
        encoder,
        identity=f"{digest[:16]}/{backbone.identity}",
        rules=bundle.rules,
    )


def _build(settings: dict[str, Any], tensors: dict[str, Tensor]) -> ScorerBundle:
    full = {
        key: value.float() if value.is_floating_point() else value for key, value in tensors.items()
    }
    detector = Detector(**settings["detector"])
    head = PictureHead(**settings["head"])
    _fill(detector, full, "detector.")
    _fill(head, full, "head.")
    concepts: dict[str, str] = settings["concepts"]
    if full["table"].shape[0] != len(concepts):
        raise ValueError(f"{full['table'].shape[0]} embeddings for {len(concepts)} concepts")
    return ScorerBundle(
        detector=detector.eval(),
        head=head.eval(),
        table=torch.nn.functional.normalize(full["table"], dim=-1),
        concepts=concepts,
        styles=tuple(settings["styles"]),
        side=int(settings["side"]),
        rules=_rules(settings["rules"]),
    )


def _rules(fields: dict[str, Any]) -> JudgeRules:
    known: dict[str, Any] = {**fields, "styles_asked": tuple(fields["styles_asked"])}
    return JudgeRules(**known)


def _fill(module: nn.Module, tensors: dict[str, Tensor], prefix: str) -> None:
    length = len(prefix)
    module.load_state_dict(
        {key[length:]: value for key, value in tensors.items() if key.startswith(prefix)}
    )
    module.requires_grad_(False)
