"""Block scales in the order that tensor cores want them: tiles of 128 rows and 4 columns.

Inside a tile, the scale of row r and column c stands at 16 (r mod 32) + 4 (r div 32) + c; tiles
follow each other row by row, and the matrix is padded with zeros to whole tiles (cuBLAS, "1D block
scaling factors layout"). ComfyUI's MXFP8 and NVFP4 files store scales like this.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

TILE_ROWS, TILE_COLUMNS = 128, 4


def tiled_shape(rows: int, columns: int) -> tuple[int, int]:
    """Rows and columns of a scale matrix padded to whole tiles."""
    return -(-rows // TILE_ROWS) * TILE_ROWS, -(-columns // TILE_COLUMNS) * TILE_COLUMNS


def to_tiles(scales: Tensor) -> Tensor:
    """[..., rows, columns] → the same numbers tile by tile, padded: [..., rows', columns']."""
    rows, columns = scales.shape[-2:]
    tall, wide = tiled_shape(rows, columns)
    padded = F.pad(scales, (0, wide - columns, 0, tall - rows))
    split = padded.unflatten(-2, (-1, 4, 32)).unflatten(-1, (-1, TILE_COLUMNS))
    tiles = split.movedim(-2, -4).transpose(-2, -3)
    return tiles.reshape(padded.shape)


def from_tiles(tiles: Tensor, rows: int, columns: int) -> Tensor:
    """The inverse of `to_tiles`: [..., rows', columns'] → [..., rows, columns]."""
    tall, wide = tiles.shape[-2:]
    split = tiles.flatten(-2).unflatten(-1, (tall // TILE_ROWS, wide // TILE_COLUMNS, 32, 4, 4))
    matrix = split.transpose(-2, -3).movedim(-4, -2)
    return matrix.reshape(tiles.shape)[..., :rows, :columns]
