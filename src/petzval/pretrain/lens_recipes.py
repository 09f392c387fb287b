"""Lens-Base as its paper trains it (section 3), a faster variant, and the model of its ablations.

| | stage 1 | stage 2 |
| --- | --- | --- |
| pictures | 512 x 512 | 27 buckets: areas of 512, 768 and 1024 squared |
| iterations | 400,000 | 400,000, from the weights of stage 1 |
| of a GPU (128 of them) | 24 | 24, 10 or 6, by area |
| learning rate | 2e-4, constant | 1e-4, constant |
| noise level | logit-normal, mu 1.06 | logit-normal, mu 1.0 at 256 tokens to 1.3 at 4096 |

Both: AdamW with betas (0.9, 0.999), gradients clipped to 1.0, bfloat16 with activation
checkpointing, plain mean square, the denoiser alone learns.

Not stated in the paper, and chosen here: decoupled weight decay 0.01 and 1,000 steps of warm-up in
each stage; std 1 of the logit-normal; a tenth of the samples without text; averages of the weights
over some 10,000 steps for evaluation and export; float32 masters under FSDP2, sharded over all
GPUs; every block computed again in the backward; gradients of ranks with unequal batches averaged
rank by rank, as plain data parallelism does; buckets drawn in proportion to what is left of them.
Stage 1 scales the pictures of all buckets to cover its square, so that both stages read the same
shards. REPA is left out: it needs a trained vision encoder, and no package carries a fitting one.
"""

from __future__ import annotations

import dataclasses

from petzval.data.bucket_sampler import LENS_BATCH_SIZES, BucketMode
from petzval.data.packed_sampler import PackedMode
from petzval.data.packing import CostModel
from petzval.data.sampler import SamplerConfig
from petzval.models.mmdit import MMDiTConfig
from petzval.models.sizes import LENS_MMDIT, LENS_TOY_MMDIT
from petzval.pretrain.corpus_batch import CorpusConfig
from petzval.pretrain.recipe import CorpusRecipe
from petzval.training.loop import LoopConfig
from petzval.training.optimizer import OptimizerConfig
from petzval.training.parallel import ParallelConfig

NUM_GPUS = 128
LENS_BASES = (512, 768, 1024)


def lens_base_stage1() -> CorpusRecipe:
    """Low resolution: 3,072 pictures of 512 x 512 a step, 24 on each of 128 GPUs."""
    return CorpusRecipe(
        model=LENS_MMDIT,
        objective=CorpusConfig(
            sampler=SamplerConfig(
                seed=1,
                num_virtual_ranks=NUM_GPUS,
                bucket=BucketMode(batch_sizes=LENS_BATCH_SIZES),
            ),
            square=512,
        ),
        loop=_loop(learning_rate=2e-4),
    )


def lens_base_stage2() -> CorpusRecipe:
    """Mixed resolutions, from the weights of stage 1 (`--start`): each rank one of 27 buckets."""
    return CorpusRecipe(
        model=LENS_MMDIT,
        objective=CorpusConfig(
            sampler=SamplerConfig(
                seed=2,
                num_virtual_ranks=NUM_GPUS,
                bucket=BucketMode(batch_sizes=LENS_BATCH_SIZES),
            ),
            bases=LENS_BASES,
        ),
        loop=_loop(learning_rate=1e-4),
    )


def lens_base_stage2_fast() -> CorpusRecipe:
    """Stage 2 with what others report to help; not the paper's run.

    Packed rows of one token budget in place of buckets, stratified noise levels, Muon on the hidden
    matrices, matrix products and attention kept for the backward in every block.
    """
    parity = lens_base_stage2()
    sampler = dataclasses.replace(
        parity.objective.sampler, mode="packed", packed=PackedMode(token_budget=24_576)
    )
    loop = parity.loop
    return dataclasses.replace(
        parity,
        objective=dataclasses.replace(parity.objective, sampler=sampler, stratified=True),
        loop=dataclasses.replace(
            loop,
            optimizer=dataclasses.replace(loop.optimizer, kind="muon"),
            parallel=dataclasses.replace(loop.parallel, recompute="operations"),
        ),
    )


def toy_1b() -> CorpusRecipe:
    """Lens-Toy, the paper's model for ablations: 1.2 B parameters, 120,000 steps at 512 x 512.

    The paper tries autoencoders and text encoders with it and states no width; width 1024 and 32
    blocks give its size. The networks beside it are those that the paper ends up with: four layers
    of GPT-OSS-20B and the FLUX.2 autoencoder. Batch and learning rate are those of stage 1, shared
    by 16 GPUs of 24 pictures.
    """
    return CorpusRecipe(
        model=LENS_TOY_MMDIT,
        objective=CorpusConfig(
            sampler=SamplerConfig(
                seed=3,
                num_virtual_ranks=16,
                bucket=BucketMode(batch_sizes=LENS_BATCH_SIZES),
                packed=PackedMode(cost_model=_cost_model(LENS_TOY_MMDIT)),
            ),
            square=512,
        ),
        loop=dataclasses.replace(_loop(learning_rate=2e-4), num_steps=120_000),
    )


def _loop(*, learning_rate: float) -> LoopConfig:
    return LoopConfig(
        optimizer=OptimizerConfig(
            kind="adamw",
            learning_rate=learning_rate,
            betas=(0.9, 0.999),
            weight_decay=0.01,
            max_grad_norm=1.0,
            warmup_steps=1000,
            decay="constant",
        ),
        parallel=ParallelConfig(weighting="rank", parameters="bfloat16", recompute="blocks"),
        num_steps=400_000,
        autocast="bfloat16",
        log_every=50,
        save_minutes=30.0,
        callback_minutes=120.0,
        milestone_steps=20_000,
        num_workers=8,
        ema_decay=0.9999,
    )


def _cost_model(model: MMDiTConfig) -> CostModel:
    """Attention against the rest, by the count of operations."""
    return CostModel(linear_tokens=6 * model.hidden_size)
