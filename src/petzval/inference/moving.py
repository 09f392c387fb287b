"""The networks of a pipeline on the move: from the placement in force to another one.

Nobody uses them meanwhile. Where memory runs out on the way a smaller placement is followed, and a
smaller one again; where none is left, the pipeline has what it had before, and goes on with that.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial

from petzval.conditioning.encoder import PromptEncoder
from petzval.errors import PlacementError
from petzval.inference.decoding import Decodings
from petzval.inference.dry_networks import Work
from petzval.inference.fitting import Fit, Fitting, smaller_fit
from petzval.inference.graphs import GraphedDenoiser
from petzval.inference.placement import ENCODER, Placement
from petzval.inference.plan import GenerationPlan
from petzval.inference.planning import Planning
from petzval.inference.preview import SmallPreviews
from petzval.inference.residency import Residency
from petzval.inference.words import Words
from petzval.kernels import backends
from petzval.weights.lora_live import LiveLoras


class Moving:
    """Where a pipeline's networks are, and how they come to be elsewhere.

    Args:
        residency: of the beginning.
        text: has the encoder of whichever residency is in force.
        planning: makes placements; None: the networks are there for good.
        live: LoRAs beside the denoiser's weights, whichever denoiser that is.

    Attributes:
        residency: in force.
        graphs: calls of its denoiser; see `GraphedDenoiser.of`.
        words, decodings, previews: use its networks, also in other threads.
        fitting: knows which pictures fit.
        concurrent: whether what is being drawn may run beside other pictures.
        leaving: called before the networks are put out for others.
        moved: called when others have taken their place.
    """

    def __init__(
        self,
        residency: Residency,
        text: PromptEncoder,
        planning: Planning | None = None,
        live: LiveLoras | None = None,
    ) -> None:
        self._planning = planning
        self._text = text
        self._live = live
        self._uses_prefixes = text.use_prefix_cache
        self.adopt(residency)
        self.words = Words(text, lambda: planning)
        self.decodings = Decodings()
        self.previews = SmallPreviews(
            lambda: self.residency.autoencoder, lambda: self.residency.concurrent()
        )
        self.fitting = Fitting(planning)
        self.concurrent = True
        self.leaving: Callable[[], object] = lambda: None
        self.moved: Callable[[], object] = lambda: None

    @property
    def placement(self) -> Placement | None:
        """In force; None where everything is there for good."""
        return self.residency.placement

    def adopt(self, residency: Residency) -> None:
        """Have the networks as somebody else has them; who uses the old ones has stopped."""
        if self._live is not None:
            self._live.attach(residency.networks.denoiser, residency.device, residency.number)
        self.residency = residency
        self._text.encoder = residency.networks.encoder
        # One that is shared outlives its pipeline, and would hold its networks.
        comes = residency.placement is not None
        self._text.bring = partial(residency.bring, ENCODER) if comes else None
        self._text.use_prefix_cache = self._uses_prefixes and not residency.streams(ENCODER)
        denoiser = residency.networks.denoiser
        self.graphs = GraphedDenoiser.of(denoiser, stays=residency.concurrent())

    def put_out(self) -> None:
        """Put out weights that the placement in force can bring again."""
        with self._still():
            self.residency.put_out()

    def make_room(self, plan: GenerationPlan, batch_size: int) -> int:
        """Follow another placement where a plan needs one; how many pictures may run together.

        Warns:
            MemoryWarning: fewer do, or another placement is followed.

        Raises:
            PlacementError: no placement has room for a picture.
        """
        fit = self.fitting.to_draw(self.residency, plan, batch_size)
        if fit.placement is not None:
            fit = self._move(self._work(plan, fit.batch_size, fit.text_batch), fit)
        elif not fit.concurrent:
            self.graphs.clear()
            self.decodings.settle()
        return self._agree(fit)

    def shrink(self, plan: GenerationPlan, batch_size: int) -> int:
        """Memory ran out: follow a smaller placement; how many pictures may run together there.

        Warns:
            MemoryWarning: always.

        Raises:
            PlacementError: there is none.
        """
        if self._planning is None:
            raise PlacementError(f"memory ran out at {plan.resolution}", "draw a smaller --size")
        self.fitting.stay()
        self.concurrent = False  # there is less than was thought
        return self._agree(self._move(self._work(plan, batch_size, self._text.max_batch), None))

    def _agree(self, fit: Fit) -> int:
        self.concurrent = fit.concurrent
        self.words.limit(fit.text_batch, fit.feature_bytes)
        return fit.batch_size

    def _work(self, plan: GenerationPlan, batch_size: int, text_batch: int | None) -> Work:
        assert self._planning is not None
        work = self._planning.work(plan, batch_size=batch_size)
        texts = work.text_batch if text_batch is None else min(work.text_batch, text_batch)
        return replace(work, text_batch=texts)

    def _move(self, work: Work, fit: Fit | None) -> Fit:
        """Put everything out, then follow a fit, or one that is smaller than what was in force."""
        assert self._planning is not None
        old = self.residency
        with self._still():
            self.leaving()
            try:
                old.release()
                found = follow(self._planning, work, fit, old.placement, self._take)
            except BaseException as error:
                self.fitting.stay()
                self._restore(old, at_once=isinstance(error, Exception))
                raise
        if found is not fit:
            self.fitting.stay()
        return found

    def _take(self, residency: Residency) -> None:
        try:
            self.adopt(residency)
            self.moved()
        except BaseException:
            residency.release()
            raise

    def _restore(self, old: Residency, *, at_once: bool) -> None:
        """Have what was there before: now, or where it comes and goes when it is asked for."""
        if old.placement is not None:
            self.adopt(old)
            return
        assert self._planning is not None
        back = None
        with suppress(Exception):  # one is on its way to be raised
            back = self._planning.restored() if at_once else None
        self.adopt(back or self._planning.least())
        self.moved()

    @contextmanager
    def _still(self) -> Generator[None]:
        """No other thread uses the networks; calls of them that were recorded are forgotten."""
        self.previews.wait()
        with self.words.moving(), self.decodings.moving():
            self.graphs.clear()
            yield


def follow(
    planning: Planning,
    work: Work,
    fit: Fit | None,
    than: Placement | None,
    take: Callable[[Residency], object],
) -> Fit:
    """Load networks as a fit has them; where memory runs out meanwhile, as a smaller one does.

    Args:
        planning: of the checkpoint.
        work: of the pictures that are to fit.
        fit: to begin with; None begins with one that is smaller than `than`.
        than: the placement under which memory ran out; None where all was there for good.
        take: is given the networks, and may run out of memory itself.

    Returns:
        What is followed.

    Warns:
        MemoryWarning: where that is not the fit to begin with.

    Raises:
        PlacementError: there is nothing smaller.
        CheckpointError: a tensor cannot be read any more.
    """
    while True:
        fit = fit or smaller_fit(planning, work, than)
        assert fit.placement is not None
        try:
            take(planning.follow(fit.placement, fit.terms))
            return fit
        except (RuntimeError, MemoryError, OSError) as error:
            if not backends.is_out_of_memory(error):
                raise
        backends.give_back(planning.device)  # out here what its traceback held is gone
        texts = work.text_batch if fit.text_batch is None else fit.text_batch
        work = replace(work, batch=min(work.batch, fit.batch_size), text_batch=texts)
        than, fit = fit.placement, None
