"""Denoised tokens → finished pictures, by the autoencoder that a pipeline has at the moment."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from petzval.inference import numerics
from petzval.inference.decoding import decode_tokens
from petzval.inference.event import Pixels, StageClock
from petzval.inference.numerics import OfCheckpoint
from petzval.inference.plan import GenerationPlan, MadeBy, PlannedImage
from petzval.inference.request import GeneratedImage
from petzval.inference.residency import Residency
from petzval.shapes import Images, LatentTokens


class Finishing:
    """Decodes as the placement in force wants it, and stops where a number is not finite.

    Args:
        residency: gives the one in force.
        weights: gives what names the files of a damaged network.
    """

    def __init__(
        self, residency: Callable[[], Residency], weights: Callable[[], OfCheckpoint | None]
    ) -> None:
        self._residency = residency
        self._weights = weights

    def decode(
        self, tokens: LatentTokens, plan: GenerationPlan, strip_rows: int | None = None
    ) -> Images:
        """See `Pipeline.decode`."""
        residency = self._residency()
        rows = residency.strip_rows if strip_rows is None else strip_rows
        grid = plan.resolution.grid
        return decode_tokens(residency.autoencoder, tokens, grid, plan.parity, strip_rows=rows)

    def pixels(
        self, tokens: LatentTokens, plan: GenerationPlan, strip_rows: int | None = None
    ) -> Pixels:
        """The pictures as 8-bit pixels.

        Raises:
            NumericsError: a number is not finite.
        """
        decoded = self.decode(tokens, plan, strip_rows)
        dtype = self._residency().dtype
        numerics.check_finite(decoded, "decoded picture", dtype, self._weights())
        return numerics.to_pixels(decoded)

    def finish(
        self,
        plan: GenerationPlan,
        images: Sequence[PlannedImage],
        tokens: LatentTokens,
        clock: StageClock,
        made_by: MadeBy,
        strip_rows: int | None = None,
    ) -> tuple[GeneratedImage, ...]:
        """Decode the pictures; the time it takes is the last that their clock measures.

        Raises:
            NumericsError: a number is not finite.
        """
        clock.resume()
        pixels = self.pixels(tokens, plan, strip_rows)
        clock.lap("decode")
        return tuple(plan.pictures(images, pixels, made_by, clock.seconds))
