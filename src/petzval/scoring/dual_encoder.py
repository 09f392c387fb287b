"""Say what a cut-out shows: pictures and concepts, embedded where cosine similarity means sameness.

The picture side is a frozen network and a small trained head. The concept side is a table: each
row was trained as the sum of a vector of the concept's own and the mean vector of its words, so
that "fire engine" and "fire" share what they share.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from petzval.scoring.backbone import PictureFeatures

DROPOUT = 0.2
"""Of the features and of the hidden layer, in training."""

Embeddings = Float[Tensor, "batch embedding"]


class PictureHead(nn.Module):
    """Frozen features -> unit-length embedding, and logits of the drawing styles.

    The embedding is a linear map, which carries over to new drawing styles, plus what a small
    network adds to it. Features are standardised first: see `standardise`.
    """

    def __init__(
        self, num_features: int, num_styles: int, hidden: int = 384, embedding: int = 128
    ) -> None:
        super().__init__()
        self.shape = {
            "num_features": num_features,
            "num_styles": num_styles,
            "hidden": hidden,
            "embedding": embedding,
        }
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("deviation", torch.ones(num_features))
        self.mean: Float[Tensor, " features"]
        self.deviation: Float[Tensor, " features"]
        self.direct = nn.Linear(num_features, embedding)
        self.inward = nn.Linear(num_features, hidden)
        self.outward = nn.Linear(hidden, embedding)
        self.styles = nn.Linear(hidden, num_styles)

    @torch.no_grad()
    def standardise(self, features: Float[Tensor, "views features"]) -> None:
        """From now on take features relative to the mean and deviation of these."""
        self.mean.copy_(features.mean(dim=0))
        self.deviation.copy_(features.std(dim=0) + 1e-2)

    def forward(
        self, features: Float[Tensor, "batch features"]
    ) -> tuple[Embeddings, Float[Tensor, "batch styles"]]:
        scaled = F.dropout((features - self.mean) / self.deviation, DROPOUT, self.training)
        hidden = F.dropout(F.gelu(self.inward(scaled)), DROPOUT, self.training)
        embedding = self.direct(scaled) + self.outward(hidden)
        return F.normalize(embedding, dim=-1), self.styles(hidden)


class ConceptTower(nn.Module):
    """Concept -> embedding: a vector of its own plus the mean of its words' vectors.

    Args:
        words: of every concept, in the order of the table.
    """

    def __init__(self, words: Sequence[Sequence[str]], embedding: int = 128) -> None:
        super().__init__()
        distinct = sorted({word for row in words for word in row})
        vocabulary = {word: index for index, word in enumerate(distinct)}
        flat = [vocabulary[word] for row in words for word in row]
        starts = [0]
        for row in words[:-1]:
            starts.append(starts[-1] + len(row))
        self.register_buffer("flat", torch.tensor(flat, dtype=torch.long), persistent=False)
        self.register_buffer("starts", torch.tensor(starts, dtype=torch.long), persistent=False)
        self.flat: Int[Tensor, " words"]
        self.starts: Int[Tensor, " concepts"]
        self.words = nn.EmbeddingBag(max(1, len(vocabulary)), embedding, mode="mean")
        self.own = nn.Embedding(len(words), embedding)
        for table in (self.words, self.own):
            nn.init.normal_(table.weight, std=embedding**-0.5)

    def forward(self) -> Float[Tensor, "concepts embedding"]:
        """Unit-length embeddings of all concepts, in the order of the table."""
        return F.normalize(self.words(self.flat, self.starts) + self.own.weight, dim=-1)


def contrastive_loss(
    pictures: Embeddings,
    concepts: Float[Tensor, "concepts embedding"],
    wanted: Int[Tensor, " batch"],
    scale: Float[Tensor, ""],
    *,
    smoothing: float = 0.1,
) -> Float[Tensor, ""]:
    """Each picture against all concepts: cross entropy of the scaled cosine similarities.

    Every concept is in every batch, so the other direction would add nothing new.
    """
    return F.cross_entropy(scale * pictures @ concepts.T, wanted, label_smoothing=smoothing)


class DualEncoder:
    """What a trained pair of towers knows, ready to be asked.

    Args:
        backbone: the frozen features the head was trained on.
        head: the trained picture head.
        concepts: English name by concept id, in the order of `table`.
        table: unit-length embeddings of the concepts.
        styles: names of the drawing styles, in the order of the head's logits.
    """

    def __init__(
        self,
        backbone: PictureFeatures,
        head: PictureHead,
        concepts: Mapping[str, str],
        table: Float[Tensor, "concepts embedding"],
        styles: Sequence[str],
    ) -> None:
        self._backbone = backbone
        self._head = head.eval()
        self._table = table
        self._names = dict(concepts)
        self._ids = list(concepts)
        self._index = {concept: index for index, concept in enumerate(self._ids)}
        self.styles = tuple(styles)
        self._lists: dict[tuple[str, int], Int[Tensor, " distractors"]] = {}

    @property
    def side(self) -> int:
        """Height and width of the cut-outs it wants."""
        return self._backbone.side

    def knows(self, concept: str) -> bool:
        """Whether a concept is in the table."""
        return concept in self._index

    @torch.inference_mode()
    def embed(
        self, cutouts: Float[Tensor, "batch 3 side side"]
    ) -> tuple[Embeddings, Float[Tensor, "batch styles"]]:
        """Embeddings and style logits of cut-outs in [0, 1]."""
        return self._head(self._backbone(cutouts))

    def rank(
        self, embedding: Float[Tensor, " embedding"], concept: str, num_distractors: int
    ) -> int:
        """Place of `concept` among itself and its distractors, 1 is nearest."""
        similarities = self._table @ embedding
        others = similarities[self.distractors(concept, num_distractors)]
        return 1 + int((others > similarities[self._index[concept]]).sum())

    def nearest(self, embedding: Float[Tensor, " embedding"]) -> str:
        """English name of the nearest concept of all."""
        return self._names[self._ids[int((self._table @ embedding).argmax())]]

    def distractors(self, concept: str, count: int) -> Int[Tensor, " distractors"]:
        """The concepts that `concept` must beat: always the same, drawn by hash.

        Names that contain one another ("cat", "cat face") are not asked to be told apart.
        """
        key = (concept, count)
        if key not in self._lists:
            words = frozenset(self._names[concept].lower().split())
            others = [
                other
                for other, name in self._names.items()
                if not words <= (theirs := frozenset(name.lower().split())) and not theirs <= words
            ]
            others.sort(key=lambda other: hashlib.sha256(f"{concept}/{other}".encode()).digest())
            chosen = [self._index[other] for other in others[:count]]
            self._lists[key] = torch.tensor(chosen, dtype=torch.long)
        return self._lists[key]


def initial_scale() -> Float[Tensor, ""]:
    """The logarithm of the starting similarity scale (a temperature of 1/15)."""
    return torch.tensor(math.log(15.0))
