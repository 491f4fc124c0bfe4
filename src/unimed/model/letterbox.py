"""An image of any shape inside a frame of squares: aspect kept, padding centred, and the exact way back."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional

from unimed.data import images
from unimed.errors import InputError


@dataclass(frozen=True)
class Letterbox:
    """Where an image of `height` x `width` pixels lies in a frame of `grid` squares, rows and columns, of `size` x `size`.

    The image grows or shrinks until it fills the frame along one side; the other keeps its share, rounded, and never less than
    a pixel. An odd pixel of padding goes to the bottom or the right. Raises InputError for a side below one pixel.
    """

    height: int
    width: int
    size: int
    grid: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        if min(self.height, self.width, *self.frame) < 1:
            found = f"{self.height} x {self.width} in {self.frame[0]} x {self.frame[1]}"
            raise InputError(f"a letterbox needs sides of at least one pixel, found {found}")

    @property
    def frame(self) -> tuple[int, int]:
        """Rows and columns of pixels of the frame."""
        return self.grid[0] * self.size, self.grid[1] * self.size

    @property
    def scale(self) -> float:
        """Frame pixels per image pixel; below 1 the image shrinks."""
        return min(self.frame[0] / self.height, self.frame[1] / self.width)

    @property
    def content_height(self) -> int:
        """Rows of the frame that the image fills."""
        return max(1, round(self.height * self.scale))

    @property
    def content_width(self) -> int:
        """Columns of the frame that the image fills."""
        return max(1, round(self.width * self.scale))

    @property
    def top(self) -> int:
        """Rows of padding above the image."""
        return (self.frame[0] - self.content_height) // 2

    @property
    def left(self) -> int:
        """Columns of padding left of the image."""
        return (self.frame[1] - self.content_width) // 2

    @property
    def content(self) -> tuple[slice, slice]:
        """The rows and columns of the frame that hold the image."""
        return slice(self.top, self.top + self.content_height), slice(self.left, self.left + self.content_width)

    def image(self, image: Image.Image | UInt8[np.ndarray, "..."]) -> UInt8[np.ndarray, "rows columns 3"]:
        """The image in the frame as RGB, black around it.

        Shrinking averages areas, enlarging is bicubic, and an image that needs neither is copied to the byte. Raises
        InputError for an image of another size than the letterbox was made for.
        """
        picture = images.rgb(image if isinstance(image, Image.Image) else Image.fromarray(image))
        self._require(picture.height, picture.width)
        if self.scale != 1:
            resampling = Image.Resampling.BOX if self.scale < 1 else Image.Resampling.BICUBIC
            picture = picture.resize((self.content_width, self.content_height), resampling)
        frame = np.zeros((*self.frame, 3), np.uint8)
        frame[self.content] = np.asarray(picture)
        return frame

    def mask(self, mask: Bool[np.ndarray, "height width"]) -> Float32[np.ndarray, "rows columns"]:
        """The share of each frame pixel that the mask covers, in [0, 1].

        Areas are exact, so one marked pixel of a large image leaves its small share instead of vanishing. Raises
        InputError for a mask of another size than the letterbox was made for.
        """
        self._require(*mask.shape)
        frame = np.zeros(self.frame, np.float32)
        frame[self.content] = area_means(area_means(mask, self.content_height).T, self.content_width).T.clip(0, 1)
        return frame

    def unmask(self, logits: Float[Tensor, "mask low_rows low_columns"]) -> Float[Tensor, "mask height width"]:
        """Mask logits of the frame, at any resolution, as logits of the image's own pixels, in float32.

        The map grows to the frame before the padding is cut off, so that the content window is a whole number of its
        pixels. MedPLIB's evaluation cuts the small map by frame-sized numbers, which shifts masks on all but square images.
        """
        frame = functional.interpolate(logits.float()[:, None], size=self.frame, mode="bilinear")
        rows, columns = self.content
        content = frame[:, :, rows, columns]
        return functional.interpolate(content, size=(self.height, self.width), mode="bilinear", antialias=True)[:, 0]

    def points_to_frame(self, points: Float[np.ndarray, "*point 2"]) -> Float[np.ndarray, "*point 2"]:
        """Points (x, y) of the image as points of the frame; whole numbers are pixel centres in both."""
        return (points + 0.5) * self._stretch + self._corner - 0.5

    def points_to_image(self, points: Float[np.ndarray, "*point 2"]) -> Float[np.ndarray, "*point 2"]:
        """Points (x, y) of the frame as points of the image; whole numbers are pixel centres in both."""
        return (points + 0.5 - self._corner) / self._stretch - 0.5

    def boxes_to_frame(self, boxes: Float[np.ndarray, "*box 4"]) -> Float[np.ndarray, "*box 4"]:
        """Boxes (x, y, width, height) of the image in the frame; box 0, 0, 1, 1 is the whole first pixel."""
        corner, extent = boxes[..., :2] * self._stretch + self._corner, boxes[..., 2:] * self._stretch
        return np.concatenate([corner, extent], axis=-1)

    def boxes_to_image(self, boxes: Float[np.ndarray, "*box 4"]) -> Float[np.ndarray, "*box 4"]:
        """Boxes (x, y, width, height) of the frame in the image; box 0, 0, 1, 1 is the whole first pixel."""
        corner, extent = (boxes[..., :2] - self._corner) / self._stretch, boxes[..., 2:] / self._stretch
        return np.concatenate([corner, extent], axis=-1)

    @property
    def _stretch(self) -> np.ndarray:
        """Frame pixels per image pixel along x and y, which rounding may set a little apart."""
        return np.array([self.content_width / self.width, self.content_height / self.height])

    @property
    def _corner(self) -> np.ndarray:
        return np.array([self.left, self.top], float)

    def _require(self, height: int, width: int) -> None:
        if (height, width) != (self.height, self.width):
            raise InputError(f"expected {self.height} x {self.width} pixels (height x width), found {height} x {width}")


def area_means(values: np.ndarray, count: int) -> Float[np.ndarray, " {count} *rest"]:
    """The means of `count` equal spans along the first axis; a span may cut through a value and takes its part of it."""
    edges = np.linspace(0, len(values), count + 1)
    sums = np.concatenate([np.zeros_like(values[:1], float), values.cumsum(axis=0, dtype=float)])
    whole = np.minimum(edges.astype(int), len(values) - 1)
    part = (edges - whole).reshape(-1, *[1] * (values.ndim - 1))
    return np.diff(sums[whole] + part * values[whole], axis=0) * (count / len(values))
