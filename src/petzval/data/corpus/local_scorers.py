"""Scorers whose weights a user names by path, in one of two forms.

`*.safetensors`: a head on the vectors of `embedding`. Tensors `layers.<n>.weight` [out, in] and
    `layers.<n>.bias` [out], n from 0, the last with one output. Metadata, all text: `form`
    "petzval-head-1", `embedding` (the `EmbeddingSettings.identity` it was trained in),
    `activation` between layers ("relu", "gelu" or "none"), `output` ("linear" or "sigmoid").
`*.onnx`: a whole model of one picture input, with `<name>.onnx.json` beside it (`OnnxForm`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from petzval.config import from_mapping, read_json
from petzval.data.corpus.embedding import EmbeddingSettings, vectors_of
from petzval.data.corpus.learned import PictureScorer, batches
from petzval.data.corpus.manifest import hash_file
from petzval.data.corpus.pictures import PictureReader
from petzval.data.decode import Pixels
from petzval.errors import CheckpointError, DataError, MissingExtraError

HEAD_FORM = "petzval-head-1"


@dataclass(frozen=True, slots=True)
class HeadScorer:
    """A small network on the vectors of `embedding`; see the file form above."""

    path: Path
    embedding: str
    needs: tuple[str, ...] = ("embedding",)

    @property
    def identity(self) -> str:
        """The file's hash."""
        return f"head:{_hash_of(self.path)}"

    def score(self, rows: pa.Table, pictures: PictureReader) -> list[float | None]:
        """The head's output for each vector."""
        head = read_head(self.path, self.embedding)
        places, vectors = vectors_of(rows)
        scores: list[float | None] = [None] * rows.num_rows
        for place, value in zip(places, head(torch.from_numpy(vectors)).tolist(), strict=True):
            scores[place] = value
        return scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Layers of a head file, ready to run."""

    layers: tuple[tuple[Tensor, Tensor], ...] = field(repr=False)
    activation: str
    output: str

    @torch.inference_mode()
    def __call__(self, vectors: Tensor) -> Tensor:
        """[pictures, features] → [pictures], in float64."""
        x = vectors.double()
        for number, (weight, bias) in enumerate(self.layers):
            if number and self.activation != "none":
                x = torch.relu(x) if self.activation == "relu" else torch.nn.functional.gelu(x)
            x = x @ weight.T + bias
        return torch.sigmoid(x[:, 0]) if self.output == "sigmoid" else x[:, 0]


def read_head(path: Path, embedding: str) -> Head:
    """A head file, read once.

    Args:
        path: of the file.
        embedding: identity of the vectors that it is given.

    Raises:
        CheckpointError: it is damaged, of another form, or for another embedding.
    """
    return _head(path, embedding, _hash_of(path))


@lru_cache(maxsize=8)
def _head(path: Path, embedding: str, _: str) -> Head:
    try:
        with safe_open(path, framework="pt") as file:
            told = file.metadata() or {}
            tensors = {name: file.get_tensor(name).double() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a safetensors file that can be read") from error
    if told.get("form") != HEAD_FORM:
        raise CheckpointError(
            f"{path}: its metadata has no form {HEAD_FORM!r}",
            "see the file form in the docstring of petzval.data.corpus.local_scorers",
        )
    if told.get("embedding") != embedding:
        raise CheckpointError(
            f"{path}: a head for the embedding {told.get('embedding')!r}, here it is {embedding!r}",
            "set the embedding that it was trained in"
            if embedding
            else "the network of the embedding is not installed: pip install 'petzval[eval]'",
        )
    activation, output = told.get("activation", "none"), told.get("output", "linear")
    if activation not in {"none", "relu", "gelu"} or output not in {"linear", "sigmoid"}:
        raise CheckpointError(f"{path}: activation {activation!r} or output {output!r} is unknown")
    layers: list[tuple[Tensor, Tensor]] = []
    width = None
    for number in range(len(tensors) // 2):
        weight, bias = (tensors.get(f"layers.{number}.{kind}") for kind in ("weight", "bias"))
        if weight is None or bias is None or weight.ndim != 2 or bias.shape != weight.shape[:1]:
            raise CheckpointError(f"{path}: layers.{number} is not a weight [out, in] and its bias")
        if width is not None and weight.shape[1] != width:
            raise CheckpointError(f"{path}: layers.{number} takes {weight.shape[1]}, gets {width}")
        layers.append((weight, bias))
        width = weight.shape[0]
    if width != 1 or 2 * len(layers) != len(tensors):
        raise CheckpointError(f"{path}: its last layer must have one output, and nothing follow")
    return Head(layers=tuple(layers), activation=activation, output=output)


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxForm:
    """How pictures go into an ONNX model and its score comes out: `<name>.onnx.json`.

    Attributes:
        height, width: of the input; pictures are squeezed to it.
        layout: order of the input's axes.
        channels: order of the colours.
        mean, std: of each channel, in that order, for values of 0 to 255.
        output: which output of the model, by position.
        column: which of its columns, for outputs [batch, columns].
    """

    height: int
    width: int
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    channels: Literal["RGB", "BGR"] = "RGB"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (255.0, 255.0, 255.0)
    output: int = 0
    column: int = 0


@dataclass(frozen=True, slots=True)
class OnnxScorer:
    """A whole model in an ONNX file, on one thread of the processor."""

    path: Path
    needs: tuple[str, ...] = ()

    @property
    def identity(self) -> str:
        """Hashes of both files."""
        return f"onnx:{_hash_of(self.path)}:{_hash_of(_form_path(self.path))}"

    def score(self, rows: pa.Table, pictures: PictureReader) -> list[float | None]:
        """The chosen column of the model's output."""
        form = from_mapping(OnnxForm, read_json(_form_path(self.path)), where=str(self.path))
        session = _session(self.path, _hash_of(self.path))
        name = session.get_inputs()[0].name
        scores: list[float | None] = []
        for loaded in batches(rows, pictures):
            inputs = [_input_of(pixels, form) for pixels in loaded if pixels is not None]
            found = iter(_outputs(session, name, np.stack(inputs), form) if inputs else [])
            scores += [None if pixels is None else next(found) for pixels in loaded]
        return scores


def _form_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _outputs(session: Any, name: str, batch: Any, form: OnnxForm) -> list[float]:
    try:
        result = np.asarray(session.run(None, {name: batch})[form.output], np.float64)
        return result.reshape(len(batch), -1)[:, form.column].tolist()
    except Exception as error:  # the library has a dozen kinds of its own
        reason = str(error).partition("\n")[0][:200]
        raise CheckpointError(
            f"the model does not take pictures as it is told: {reason}"
        ) from error


def _input_of(pixels: Pixels, form: OnnxForm) -> Any:
    image = Image.fromarray(pixels)
    size = (form.width, form.height)
    x = np.asarray(image.resize(size, Image.Resampling.BILINEAR, reducing_gap=3.0), np.float32)
    x = x if form.channels == "RGB" else x[..., ::-1]
    x = (x - np.array(form.mean, np.float32)) / np.array(form.std, np.float32)
    return x.transpose(2, 0, 1) if form.layout == "NCHW" else x


@lru_cache(maxsize=2)
def _session(path: Path, _: str) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("onnxruntime", "data") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library has a dozen kinds of its own
        raise CheckpointError(f"{path}: not an ONNX model that can be loaded") from error


def scorer_from(path: Path, embedding: EmbeddingSettings | None = None) -> PictureScorer:
    """The scorer whose weights a user names.

    Args:
        path: of the weights.
        embedding: of the vectors that a head is given; the defaults where None.

    Raises:
        DataError: there is no such file, its form is unknown, or an ONNX file has no JSON.
        CheckpointError: a head is damaged or for another embedding.
    """
    if not path.is_file():
        raise DataError(f"{path}: there are no weights", "name a .safetensors or .onnx file")
    if path.suffix == ".safetensors":
        identity = (embedding or EmbeddingSettings()).identity
        read_head(path, identity)
        return HeadScorer(path.absolute(), identity)
    if path.suffix == ".onnx":
        form = _form_path(path)
        if not form.is_file():
            raise DataError(f"{form} is missing", "it says how pictures go in: height, width, …")
        from_mapping(OnnxForm, read_json(form), where=str(form))
        return OnnxScorer(path.absolute())
    raise DataError(f"{path}: unknown form of weights", "expected .safetensors or .onnx")


def _hash_of(path: Path) -> str:
    found = path.stat()
    return _hash_as_of(path, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=16)
def _hash_as_of(path: Path, *_: int) -> str:
    return hash_file(path)[:16]
