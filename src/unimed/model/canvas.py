"""FILA's canvases: the grid of tiles that an image is laid on, and how a canvas is cut into its tiles and put together again.

FILA (Wang et al. 2024, arXiv:2412.08378) takes its five from LLaVA-NeXT: 1 x 2, 2 x 1, 2 x 2, 3 x 1 and 1 x 3 tiles.
"""

from collections.abc import Sequence
from fractions import Fraction

from jaxtyping import Float, Shaped
from torch import Tensor

Grid = tuple[int, int]
"""Rows and columns of tiles."""

NO_TILES: Grid = (0, 0)
"""The grid of an image that is seen as one square alone."""


def choose(height: int, width: int, canvases: Sequence[Sequence[int]], tile: int) -> Grid:
    """The grid whose canvas keeps most of an image's pixels, of equals the one with fewest tiles, then the first; NO_TILES of none.

    `tile` is the side of a tile as the ViT sees it. An image that fits without shrinking keeps all its pixels. What is kept grows
    with the scale, and of two canvases that keep the same the smaller one wastes less: LLaVA-NeXT's rule without its rounding.
    """

    def merit(grid: Sequence[int]) -> tuple[Fraction, int]:
        rows, columns = grid
        return min(Fraction(rows * tile, height), Fraction(columns * tile, width), Fraction(1)), -rows * columns

    if not canvases:
        return NO_TILES
    rows, columns = max(canvases, key=merit)
    return rows, columns


def squares(grid: Grid) -> int:
    """How many squares of an image the ViT sees: the whole image and every tile."""
    return 1 + grid[0] * grid[1]


def cut(canvas: Shaped[Tensor, "image channel height width"], grid: Grid) -> Shaped[Tensor, "tile channel rows columns"]:
    """The tiles of canvases or of their feature maps, image by image and in reading order: windows, nothing is resampled."""
    rows, columns = grid
    split = canvas.unflatten(3, (columns, -1)).unflatten(2, (rows, -1))
    return split.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def join(tiles: Float[Tensor, "tile channel rows columns"], grid: Grid) -> Float[Tensor, "image channel height width"]:
    """The canvases that `cut` took apart."""
    laid = tiles.unflatten(0, (-1, *grid))
    return laid.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
