"""Synthetic phantoms: made-up patients whose slices, masks and facts are known exactly and cost about a millisecond each.

They stand in for SA-Med2D-20M where no download is possible. One fact, whether a nodule is calcified, lives in a pattern that
cancels exactly when pixels are averaged in twos: no view at half resolution can hold it, whatever reads that view.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8

LONG_SIDE_PX = 96
"""Every slice is this long on one side; the other side is shorter by a multiple of four."""

ORGANS = ("liver", "spleen", "kidney", "heart", "bladder")
LESION = "nodule"
CLASSES = (*ORGANS, LESION)
MODALITIES = {"ct_00": "CT", "mr_00": "MR", "ultrasound_00": "ultrasound"}
SIDES = ("left", "right")
ROWS = 3
CONTRAST = 0.62
"""Share of the grey scale that structures span in every modality."""


@dataclass(frozen=True)
class Structure:
    """One instance of a class: where it lies and which pixels it covers."""

    name: str
    side: str
    mask: Bool[np.ndarray, "height width"]


@dataclass(frozen=True)
class Scene:
    """A slice of a made-up patient with everything that is true of it."""

    prefix: str
    dataset: str
    case: str
    position: int
    image: UInt8[np.ndarray, "height width"]
    structures: tuple[Structure, ...]
    calcified: bool

    @property
    def stem(self) -> str:
        """The file name without its ending, in SA-Med2D-20M's grammar."""
        return f"{self.prefix}--{self.dataset}--{self.case}--z_{self.position:04d}"

    @property
    def modality(self) -> str:
        """The modality as a reader writes it."""
        return MODALITIES[self.prefix]

    def named(self, name: str) -> tuple[Structure, ...]:
        """All instances of a class, in drawing order."""
        return tuple(structure for structure in self.structures if structure.name == name)

    def side_of(self, name: str) -> str | None:
        """The one side on which the class lies; None when it is absent or on both."""
        sides = {structure.side for structure in self.named(name)}
        return sides.pop() if len(sides) == 1 else None


def scenes(cases: int, slices: int, seed: int, first_case: int = 0) -> Iterator[Scene]:
    """Slices of `cases` patients, `slices` of each; the same arguments give the same pixels."""
    for number in range(first_case, first_case + cases):
        rng = np.random.default_rng([seed, number])
        prefix = str(rng.choice(list(MODALITIES)))
        dataset = ("PhantomA", "PhantomB")[int(rng.integers(2))]
        short = LONG_SIDE_PX - 4 * int(rng.integers(0, 7))
        height, width = (LONG_SIDE_PX, short) if rng.random() < 0.5 else (short, LONG_SIDE_PX)
        for position in range(slices):
            yield _scene(rng, prefix, dataset, f"case_{number:05d}", position, (height, width))


def _scene(rng: np.random.Generator, prefix: str, dataset: str, case: str, position: int, size: tuple[int, int]) -> Scene:
    slots = [(row, side) for row in range(ROWS) for side in SIDES]
    rng.shuffle(slots)
    names = [name for name in ORGANS if rng.random() < 0.5]
    if "kidney" in names and len(names) < len(ORGANS) and rng.random() < 0.3:
        names.append("kidney")
    names += [LESION] * min(int(rng.choice(3, p=(0.15, 0.6, 0.25))), len(slots) - len(names))
    calcified = LESION in names and bool(rng.random() < 0.5)
    canvas = np.full(size, 0.3, np.float32)
    structures = [_draw(rng, canvas, name, slot, calcified) for name, slot in zip(names, slots, strict=False)]
    image = _acquire(rng, canvas, prefix)
    return Scene(prefix, dataset, case, position, image, tuple(structures), calcified)


def _draw(rng: np.random.Generator, canvas: np.ndarray, name: str, slot: tuple[int, str], calcified: bool) -> Structure:
    """Paint one structure into its slot of the canvas, in place."""
    height, width = canvas.shape
    row, side = int(slot[0]), str(slot[1])
    cy = (row + 0.5) * height / ROWS + rng.uniform(-2, 2)
    cx = (0.25 if side == "left" else 0.75) * width + rng.uniform(-3, 3)
    scale = rng.uniform(0.85, 1.1)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    dy, dx = (y - cy) / scale, (x - cx) / scale
    mask, paint = _shape(name, dy, dx)
    canvas[mask] = paint[mask]
    if name == LESION and calcified:
        canvas[mask] += _cancelling_pattern(mask.shape)[mask] * _whole_blocks(mask)[mask]
    return Structure(name, side, mask)


def _shape(name: str, dy: np.ndarray, dx: np.ndarray) -> tuple[Bool[np.ndarray, "height width"], Float[np.ndarray, "height width"]]:
    """Outline and grey values of a class around the origin, in pixels at scale one."""
    radius = np.hypot(dy, dx)
    if name == "liver":
        return (dy / 9) ** 2 + (dx / 15) ** 2 <= 1, np.full_like(radius, 0.9)
    if name == "spleen":
        return (dy / 12) ** 2 + (dx / 7) ** 2 <= 1, np.full_like(radius, 0.1)
    if name == "kidney":
        return radius <= 11, np.where(radius <= 5.5, 0.1, 0.9)
    if name == "heart":
        return np.maximum(abs(dy), abs(dx)) <= 10, np.where((dy > 0) == (dx > 0), 0.95, 0.05)
    if name == "bladder":
        return radius <= 11, np.where(radius <= 6, 0.95, 0.55)
    return radius <= 8, np.full_like(radius, 0.62)


def _cancelling_pattern(size: tuple[int, int]) -> Float[np.ndarray, "height width"]:
    """A checkerboard of 40 grey levels up and down: every 2 x 2 block that starts on even pixels sums to zero after rounding too."""
    y, x = np.indices(size)
    return np.where((y + x) % 2 == 0, 1, -1) * (40 / 255 / CONTRAST)


def _whole_blocks(mask: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """The part of a mask made of whole 2 x 2 blocks: only there does the pattern cancel."""
    height, width = mask.shape
    whole = mask.reshape(height // 2, 2, width // 2, 2).all(axis=(1, 3))
    return whole.repeat(2, 0).repeat(2, 1)


def _acquire(rng: np.random.Generator, canvas: np.ndarray, prefix: str) -> UInt8[np.ndarray, "height width"]:
    """The canvas as a scanner of this modality would show it: contrast, background pattern and noise."""
    height, width = canvas.shape
    x = np.arange(width, dtype=np.float32)
    blocks = rng.standard_normal((height // 2, width // 2)).astype(np.float32).repeat(2, 0).repeat(2, 1)
    if prefix == "mr_00":
        seen = 0.12 + CONTRAST * canvas + 0.12 * np.sin(2 * np.pi * x / 24 + rng.uniform(0, 6)) + 0.02 * blocks
    elif prefix == "ultrasound_00":
        seen = 0.15 + CONTRAST * canvas + 0.07 * blocks
    else:
        seen = 0.22 + CONTRAST * canvas + 0.02 * blocks
    return np.clip(np.round(255 * seen), 0, 255).astype(np.uint8)
