"""Turn openly licensed pictures and names into captioned scenes without end.

The steps, one file each: `assets` fetches pinned packaged sets, `concepts` joins their pictures
with names in twelve languages and decides the split, `sprites` holds every picture in one
memory-mapped array, `scene` composes pictures whose whole truth is known (`ground_truth`), `render`
draws them, `caption` says what is in them, `corpus` turns that into text for the language encoder,
`prompts` lists the held-out evaluation prompts, and `build` runs the steps in order and resumably.
"""

from __future__ import annotations
