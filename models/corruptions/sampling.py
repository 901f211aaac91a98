"""Images looked at elsewhere than at their pixels: zoomed, shifted, warped; many images at once."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from models.corruptions.corruption import Floats

Integers = npt.NDArray[np.int64]
# What stands beyond an image's border: an index outside (…,) → one inside, given the side's length.
Border = Callable[[Integers, int], Integers]


def edge(indices: Integers, side: int) -> Integers:
    """aa|abcd|dd."""
    return np.clip(indices, 0, side - 1)


def mirrored(indices: Integers, side: int) -> Integers:
    """cb|abcd|cb; REFLECT_101 of OpenCV, `mirror` of scipy."""
    folded = indices % (2 * side - 2)
    return np.minimum(folded, 2 * side - 2 - folded)


def reflected(indices: Integers, side: int) -> Integers:
    """ba|abcd|dc; `reflect` of scipy."""
    folded = indices % (2 * side)
    return np.minimum(folded, 2 * side - 1 - folded)


def picked(images: npt.NDArray[Any], rows: Integers, columns: Integers) -> npt.NDArray[Any]:
    """(N, H, W, …) at rows and columns, each broadcast to (N, h, w) → (N, h, w, …)."""
    return images[np.arange(len(images))[:, None, None], rows, columns]


def bilinear(images: Floats, rows: Floats, columns: Floats, border: Border) -> Floats:
    """Images (N, H, W, C) at the places rows, columns (N, h, w), in pixels → (N, h, w, C)."""
    height, width = images.shape[1:3]
    top, left = np.floor(rows).astype(np.int64), np.floor(columns).astype(np.int64)
    down, across = (rows - top)[..., None], (columns - left)[..., None]
    sampled: Floats = np.zeros((*rows.shape, images.shape[3]))
    for step_down, weight_down in ((0, 1 - down), (1, down)):
        for step_across, weight_across in ((0, 1 - across), (1, across)):
            corner = picked(images, border(top + step_down, height), border(left + step_across, width))
            sampled += weight_down * weight_across * corner
    return sampled


def zoomed(images: Floats, factor: float) -> Floats:
    """Square images (N, H, H, C), their middle enlarged by a factor of at least 1 and cropped to the old size."""
    weights = zooming(images.shape[1], factor)
    return np.einsum("ih,nhwc,jw->nijc", weights, images, weights, optimize=True)


@lru_cache(maxsize=256)
def zooming(side: int, factor: float) -> Floats:
    """What `ndimage.zoom` does along either axis, as a matrix (side, side)."""
    kept = int(np.ceil(side / factor))
    first = (side - kept) // 2
    enlarged = ndimage.zoom(np.eye(side)[first : first + kept], (factor, 1), order=1)
    trimmed = (len(enlarged) - side) // 2
    return np.asarray(enlarged[trimmed : trimmed + side])
