"""Turn raw pictures into a clean, captioned corpus, and licensed ones into scenes without end.

`corpus` is the pipeline for raw pictures, which `decode` reads whoever made them. `sampler` decides
which samples each rank learns from (`bucket_sampler`, `packed_sampler`), with orders from
`permutation` and numbers from `randomness`.

The scenes, one file a step: `assets` fetches pinned packaged sets, `concepts` joins their pictures
with names in twelve languages and decides the split, `sprites` holds every picture in one
memory-mapped array, `scene` composes pictures whose whole truth is known (`ground_truth`), `render`
draws them, `caption` says what is in them, `texts` turns that into text for the language encoder,
`prompts` lists the held-out evaluation prompts, and `build` runs the steps in order and resumably.
"""

from __future__ import annotations
