"""Small synthetic pictures with defects that are known, since they were put there."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from petzval.data.corpus.manifest import Corpus, base_table

Image8 = NDArray[np.uint8]


def scene(seed: int, height: int = 400, width: int = 416) -> Image.Image:
    """A textured ground with discs on it: sharp, rich in greys, neither dark nor bright."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(40, 216, (int(rng.integers(4, 20)), int(rng.integers(4, 20)), 3))
    ground = Image.fromarray(coarse.astype(np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    grain = rng.normal(0, 10, (height, width, 1))
    image = Image.fromarray(np.clip(np.asarray(ground) + grain, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(4, 12))):
        x, y, size = rng.integers(0, width), rng.integers(0, height), rng.integers(20, 150)
        colour = tuple(int(value) for value in rng.integers(0, 256, 3))
        draw.ellipse((int(x), int(y), int(x + size), int(y + size)), fill=colour)
    return image


def blurred(seed: int) -> Image.Image:
    """Out of focus: three to six pixels at the size where clarity is measured, or more."""
    return scene(seed).filter(ImageFilter.GaussianBlur(3 + seed % 4))


def plain(seed: int) -> Image.Image:
    """Sharp stripes of two shades: clear, and next to no information."""
    stripes = np.repeat(np.random.default_rng(seed).integers(0, 2, 40), 10)
    grey = np.where(stripes[:, None], np.uint8(200), np.uint8(60 + seed % 40))
    return Image.fromarray(np.repeat(grey, 416, axis=1)).convert("RGB")


def dark(seed: int) -> Image.Image:
    """Underexposed until nothing but grain is left, though clear and of many shades."""
    grain = np.random.default_rng(seed).integers(0, 17, (400, 416), np.uint8)
    return Image.fromarray(grain).convert("RGB")


def bright(seed: int) -> Image.Image:
    """Burnt out until nothing but grain is left."""
    grain = np.random.default_rng(seed).integers(247, 256, (400, 416), np.uint8)
    return Image.fromarray(grain).convert("RGB")


def small(seed: int) -> Image.Image:
    """Just below the least area."""
    return scene(seed, 383, 384)


def jpeg(image: Image.Image, quality: int = 90, **options: Any) -> bytes:
    """A picture as JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, **options)
    return buffer.getvalue()


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    """A picture in any form."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def make_corpus(folder: Path, files: dict[str, bytes], rows_per_part: int = 64) -> Corpus:
    """A corpus of files that are written beside it, in order of name."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    corpus = Corpus.create(folder, "planted", rows_per_part=rows_per_part)
    rows: list[dict[str, Any]] = []
    for name, data in sorted(files.items()):
        (pictures / name).write_bytes(data)
        rows.append(
            {
                "id": hashlib.sha256(data).hexdigest(),
                "source": "planted",
                "path": f"pictures/{name}",
                "member": "",
                "offset": 0,
                "num_bytes": len(data),
                "caption": f"picture {name}",
                "licence": "CC0-1.0",
                "metadata": "{}",
            }
        )
    for start in range(0, len(rows), rows_per_part):
        corpus.append(base_table(rows[start : start + rows_per_part]))
    return corpus


def names_of(corpus: Corpus) -> dict[str, str]:
    """id → file name."""
    found: dict[str, str] = {}
    for part in corpus.parts():
        for row in corpus.read(part).to_pylist():
            found[row["id"]] = Path(row["path"]).name
    return found


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
