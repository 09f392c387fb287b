"""The packaged illustrations as a source: composed scenes, drawn into the corpus folder."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from petzval.data.caption import training_caption, unseen_caption
from petzval.data.corpus.manifest import write_whole
from petzval.data.corpus.sources import Item, Refusal
from petzval.data.ground_truth import Scene
from petzval.data.render import render_scene
from petzval.data.scene import sample_scene
from petzval.data.sprites import SpriteLibrary
from petzval.errors import DataError
from petzval.resolution import PRESETS


class SceneSource:
    """Scenes of a sprite library, each drawn at one of the nine sizes in turn.

    Pictures go to `pictures/<name>/` inside the corpus, with the library's `licences.json` beside
    them. A scene's licence joins those of the pictures in it; its metadata says what it shows, and
    has a dense and a brief caption.

    Args:
        folder: written by `petzval data build`.
        num_scenes: how many, from index 0.
        seed: names the series.
        base: side in pixels of the square size, one of the presets.
        name: recorded with every picture.

    Raises:
        DataError: the folder holds no library, or a number is out of range.
    """

    def __init__(
        self, folder: Path, *, num_scenes: int, seed: int = 0, base: int = 512, name: str = ""
    ) -> None:
        if num_scenes < 1:
            raise DataError(f"{num_scenes} scenes are none", "ask for at least one")
        if base not in PRESETS:
            raise DataError(
                f"unknown base size {base}", f"sizes: {', '.join(map(str, sorted(PRESETS)))}"
            )
        self.name = name or f"scenes-{seed}"
        self._folder = folder
        self._library = SpriteLibrary.open(folder)
        self._num_scenes = num_scenes
        self._seed = seed
        sizes = PRESETS[base].values()
        self._sizes = sorted(sizes, key=lambda size: (size.height, size.width))

    @property
    def num_steps(self) -> int:
        """Number of scenes."""
        return self._num_scenes

    def items(self, corpus_folder: Path) -> Iterator[Item | Refusal]:
        """In order of index; a scene that was drawn already is not drawn again."""
        folder = corpus_folder / "pictures" / self.name
        folder.mkdir(parents=True, exist_ok=True)
        licences = self._folder / "licences.json"
        if licences.is_file():
            write_whole(folder / "licences.json", licences.read_bytes())
        for index in range(self._num_scenes):
            size = self._sizes[index % len(self._sizes)]
            scene = sample_scene(self._library, seed=self._seed, index=index, resolution=size)
            path = folder / f"{index:08d}.png"
            if not path.is_file():
                write_whole(path, _png(self._library, scene))
            yield Item(
                path=path,
                caption=training_caption(scene, seed=index),
                licence=self._licence(scene),
                metadata={
                    "skill": scene.skill,
                    "style": scene.style,
                    "seed": scene.seed,
                    "index": scene.index,
                    "concepts": [thing.concept for thing in scene.objects],
                    "captions": {
                        "dense": unseen_caption(scene, length="dense", seed=index),
                        "brief": unseen_caption(scene, length="short", seed=index),
                    },
                },
                step=index + 1,
            )

    def _licence(self, scene: Scene) -> str:
        """An SPDX expression."""
        used = {self._library.sprites[thing.sprite].licence for thing in scene.objects}
        return " AND ".join(sorted(used))


def _png(library: SpriteLibrary, scene: Scene) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(render_scene(library, scene)).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()
