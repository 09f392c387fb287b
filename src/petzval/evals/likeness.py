"""How two sets of pictures differ, without asking what they show: distance, variety, sharpness.

Distances are between features of an EfficientNet-Lite0 (3.4 M parameters, ImageNet), the last layer
only. They have the form of the Fréchet and the kernel inception distance, but not their network:
figures compare only with others of this program on the same prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray

from petzval.scoring.backbone import EfficientNetLite0, PictureFeatures
from petzval.scoring.cutouts import to_tensor
from petzval.scoring.scorer import Picture

Vectors = Float[NDArray[np.float64], "_ features"]
"""[pictures, features]; two sets need not be of one size."""

NUM_COMPONENTS = 64
"""Of the reference's features that the Fréchet distance looks at: few hundred pictures do not
determine a covariance of 1280."""

_BATCH = 32


def features(pictures: Sequence[Picture], network: PictureFeatures) -> Vectors:
    """The network's features of whole pictures, each scaled to the network's square.

    Of an `EfficientNetLite0` only the last layer is taken: what is shown rather than how.
    """
    rows: list[NDArray[np.float64]] = []
    size = (network.side, network.side)
    for start in range(0, len(pictures), _BATCH):
        squares = [
            F.interpolate(to_tensor(one)[None], size, mode="bilinear", antialias=True)
            for one in pictures[start : start + _BATCH]
        ]
        rows.append(network(torch.cat(squares)).double().numpy())
    found = np.concatenate(rows)
    return found[:, -1280:] if isinstance(network, EfficientNetLite0) else found


@dataclass(frozen=True, slots=True, kw_only=True)
class Components:
    """Principal components of a reference set.

    Attributes:
        mean: [features].
        axes: [features, components], orthonormal.
    """

    mean: NDArray[np.float64]
    axes: NDArray[np.float64]

    @classmethod
    def of(cls, reference: Vectors, count: int = NUM_COMPONENTS) -> Components:
        """The first `count` components, or as many as the pictures determine."""
        mean = reference.mean(axis=0)
        _, _, rows = np.linalg.svd(reference - mean, full_matrices=False)
        return cls(mean=mean, axes=rows[: min(count, len(reference) - 1)].T)

    def __call__(self, vectors: Vectors) -> Float[NDArray[np.float64], "_ components"]:
        """Coordinates [pictures, components]."""
        return (vectors - self.mean) @ self.axes


def frechet_distance(first: Vectors, second: Vectors) -> float:
    """Squared 2-Wasserstein distance between normal distributions fitted to two sets of features.

    |m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½), Dowson and Landau 1982; Heusel et al. 2017.

    Raises:
        ValueError: a set has fewer than two pictures.
    """
    if min(len(first), len(second)) < 2:
        raise ValueError("a distance needs at least two pictures on each side")
    shift = first.mean(axis=0) - second.mean(axis=0)
    one, two = (np.atleast_2d(np.cov(vectors, rowvar=False)) for vectors in (first, second))
    # The eigenvalues of a product of two covariances are real and not negative.
    roots = np.sqrt(np.clip(np.linalg.eigvals(one @ two).real, 0, None))
    return float(shift @ shift + np.trace(one) + np.trace(two) - 2 * roots.sum())


def kernel_distance(first: Vectors, second: Vectors) -> float:
    """Unbiased squared maximum mean discrepancy under (x·y/d + 1)³ (Bińkowski et al. 2018).

    Zero on average for two samples of one distribution, so it may be slightly negative.

    Raises:
        ValueError: a set has fewer than two pictures.
    """
    if min(len(first), len(second)) < 2:
        raise ValueError("a distance needs at least two pictures on each side")

    def kernel(x: Vectors, y: Vectors) -> NDArray[np.float64]:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x: Vectors) -> float:
        values = kernel(x, x)
        return float((values.sum() - np.trace(values)) / (len(x) * (len(x) - 1)))

    return within(first) + within(second) - 2 * float(kernel(first, second).mean())


def variety(vectors: Vectors, prompts: Sequence[str]) -> dict[str, float]:
    """Prompt -> mean distance between the features of two of its pictures, for prompts with two."""
    found: dict[str, float] = {}
    names = np.array(prompts)
    for prompt in dict.fromkeys(prompts):
        group = vectors[names == prompt]
        count = len(group)
        if count > 1:
            gaps = np.linalg.norm(group[:, None] - group[None], axis=-1)
            found[prompt] = float(gaps.sum() / (count * (count - 1)))
    return found


def sharpness(picture: Picture) -> float:
    """Mean absolute Laplacian of the luminance (Rec. 709), in grey levels of 255."""
    grey = picture.astype(np.float64) @ np.array([0.2126, 0.7152, 0.0722])
    middle = grey[1:-1, 1:-1]
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float(np.abs(around - 4 * middle).mean())


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value and its standard error."""

    value: float
    error: float


def over_prompts(
    measure: Callable[[NDArray[np.int64]], float], prompts: Sequence[str], *, num_groups: int = 10
) -> Estimate:
    """`measure` of all pictures, and its error by leaving out one group of prompts after another.

    The delete-a-group jackknife: a bootstrap repeats pictures, and a distance would see repeated
    pictures as alike.

    Args:
        measure: of the pictures with these indices.
        prompts: of each picture; pictures of one prompt stay together. With fewer prompts than
            groups, each is a group; with one, the error is not known (NaN).
    """
    places: dict[str, int] = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    count = min(num_groups, len(places))
    group = np.array([places[prompt] % count for prompt in prompts])
    whole = measure(np.arange(len(prompts)))
    if count < 2:
        return Estimate(value=whole, error=float("nan"))
    parts = np.array([measure(np.flatnonzero(group != one)) for one in range(count)])
    spread = (count - 1) / count * ((parts - parts.mean()) ** 2).sum()
    return Estimate(value=whole, error=float(np.sqrt(spread)))
