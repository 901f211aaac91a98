"""Occlusion (Zeiler and Fergus 2014, section 4.2): what an answer loses when a part of the image is covered.

For any network, for it asks nothing but answers: of copies of the image, in each of which one square is covered by the
training images' mean colour.
"""

from math import floor

import numpy as np
import numpy.typing as npt

from service.heat import Grid, Heat, Values
from service.images import InputSpec, Pixels

# Squares along each side; each is two steps wide, so that neighbours overlap by half.
POSITIONS = 8


def covered(pixels: Pixels, spec: InputSpec) -> Pixels:
    """(H, W, 3) → (N, H, W, 3), one copy for each place, row by row; N is at most POSITIONS²."""
    rows, columns = _squares(spec.height), _squares(spec.width)
    copies = np.repeat(pixels[None], len(rows) * len(columns), 0)
    colour = np.rint(255 * np.array(spec.mean)).astype(np.uint8)
    for copy, (row, column) in zip(copies, ((r, c) for r in rows for c in columns), strict=True):
        copy[row, column] = colour
    return copies


def lost(probability: float, under: npt.NDArray[np.float64], spec: InputSpec) -> Heat:
    """Of a class's `probability`, how much goes when the square about a pixel is covered; `under` is what is left.

    under (N,), in the order of `covered`.
    """
    size = spec.height, spec.width
    counts = len(_squares(spec.height)), len(_squares(spec.width))
    places: Values = (probability - under).reshape(counts)
    rows, columns = (length / count for length, count in zip(size, counts, strict=True))
    return Heat.between(places, Grid((rows / 2 - 0.5, columns / 2 - 0.5), (rows, columns)), size)


def _squares(length: int) -> list[slice]:
    """Of each place along a side, the pixels that its square covers: its own step, and half of one on each side."""
    count = min(POSITIONS, length)
    step = length / count
    # Halves are rounded up, not to even numbers, so that all squares are alike.
    return [slice(max(0, floor((i - 0.5) * step + 0.5)), floor((i + 1.5) * step + 0.5)) for i in range(count)]
