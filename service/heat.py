"""A heat map: how much each pixel of an image speaks for a class or against it, and its picture.

Red is for, blue against, white neither: the colours run evenly from −most (blue) by 0 (white) to most (red), where
most is the largest magnitude in the map.
"""

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from service.images import Pixels

Values = npt.NDArray[np.float64]
# Of rows and of columns.
Both: TypeAlias = tuple[int, int]

RED, BLUE = np.array((255, 0, 0)), np.array((0, 0, 255))
# How much of the picture an overlay may hide.
STRENGTH = 0.7


@dataclass(frozen=True)
class Grid:
    """Where the places of a map lie on the image: the centre of the first, and how far each is from the one before.

    In pixels, of rows and of columns. As it comes, each pixel is a place.
    """

    start: tuple[float, float] = (0.0, 0.0)
    step: tuple[float, float] = (1.0, 1.0)

    def through(self, kernel: Both, stride: Both, padding: Both, dilation: Both = (1, 1)) -> "Grid":
        """Of the places that a layer makes of these; `padding` is what it puts before the first."""
        ahead = [(size - 1) * wide / 2 - before for size, wide, before in zip(kernel, dilation, padding, strict=True)]
        rows, columns = (step * by for step, by in zip(self.step, stride, strict=True))
        return Grid(self._moved(*ahead), (rows, columns))

    def cut(self, before: Both, after: Both) -> "Grid":
        """Where a map of size `before` became one of size `after`: what is lost is lost on both sides alike."""
        rows, columns = ((large - small) / 2 for large, small in zip(before, after, strict=True))
        return Grid(self._moved(rows, columns), self.step)

    def _moved(self, rows: float, columns: float) -> tuple[float, float]:
        return self.start[0] + rows * self.step[0], self.start[1] + columns * self.step[1]


@dataclass(frozen=True)
class Heat:
    """values (H, W), one for each pixel; what they are is said by whoever made them."""

    values: Values

    @classmethod
    def spread(cls, places: Values, grid: Grid, size: Both) -> "Heat":
        """What each place (h, w) holds, shared out among the pixels about it, so that the sum stays the same."""
        return cls(_drawn(places, grid, size, _shares))

    @classmethod
    def between(cls, places: Values, grid: Grid, size: Both) -> "Heat":
        """What each place (h, w) holds, at its centre; in between, between the places about it."""
        return cls(_drawn(places, grid, size, _weights))

    @property
    def colours(self) -> Pixels:
        """(H, W, 3) uint8."""
        return self._over(np.full((*self.values.shape, 1), 255.0), 1.0)

    def over(self, pixels: Pixels) -> Pixels:
        """The picture (H, W, 3) in grey, coloured where the map says something."""
        return self._over(pixels.mean(-1, keepdims=True), STRENGTH)

    def _over(self, ground: Values, strength: float) -> Pixels:
        most = np.abs(self.values).max()
        share = (self.values / most if most else self.values)[..., None]
        colours = strength * np.abs(share) * np.where(share > 0, RED, BLUE) + (1 - strength * np.abs(share)) * ground
        rounded: Pixels = colours.round().astype(np.uint8)
        return rounded

    def png(self) -> bytes:
        """The map alone, H × W in colour."""
        return png(self.colours)


def alike_on_the_right(size: Both) -> tuple[Pixels, Pixels]:
    """Two images (H, W, 3) of noise that differ in their left half only."""
    one, other = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
    other[:, size[1] // 2 :] = one[:, size[1] // 2 :]
    return one, other


def is_mirrored(one: npt.NDArray[np.floating], other: npt.NDArray[np.floating]) -> bool:
    """Whether maps (C, h, w) that a network has of two such images are those of their mirror images."""
    changed = np.abs(one - other).sum((0, 1))
    return bool(changed @ np.linspace(-1, 1, len(changed)) > 0)


def png(pixels: Pixels) -> bytes:
    """(H, W, 3) or (H, W) uint8 → a PNG."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _drawn(places: Values, grid: Grid, size: Both, share: Callable[[int, float, float, int], Values]) -> Values:
    """The pixels, each a sum over places: by how much of each, along each axis, `share` says."""
    along = zip(places.shape, grid.start, grid.step, size, strict=True)
    rows, columns = (share(count, start, step, length) for count, start, step, length in along)
    drawn: Values = rows @ places @ columns.T
    return drawn


def _shares(count: int, start: float, step: float, length: int) -> Values:
    """(length, count): the share of each place that each pixel gets; a place's shares sum to 1."""
    # A place that lies in the padding counts for the edge.
    centres = np.clip(start + step * np.arange(count), 0, length - 1)
    # More than a pixel wide, lest one falls between two.
    tents = np.clip(1 - np.abs(np.arange(length)[:, None] - centres) / max(step, 1.0), 0, None)
    shares: Values = tents / tents.sum(0)
    return shares


def _weights(count: int, start: float, step: float, length: int) -> Values:
    """(length, count): how much of each place a pixel shows; a pixel's weights sum to 1."""
    centres = start + step * np.arange(count)
    return np.stack([np.interp(np.arange(length), centres, one) for one in np.eye(count)], 1)
