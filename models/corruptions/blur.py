"""Out of focus, through frosted glass, moved or zoomed while the shutter was open."""

from functools import lru_cache

import numpy as np
from scipy import ndimage

from models.corruptions.corruption import Constants, Floats, Generators, pixels, uniforms, unit
from models.corruptions.sampling import edge, picked, zooming
from models.formats import Pixels

# Degrees, either way from along the rows.
SWAY = 45.0


def gaussian(images: Pixels, constants: Constants, generators: Generators) -> Pixels:
    """constants: standard deviation, in pixels."""
    return pixels(_smoothed(unit(images), constants[0]))


def defocus(images: Pixels, constants: Constants, generators: Generators) -> Pixels:
    """constants: radius of the disk, in pixels, and standard deviation of the blur that smooths its border."""
    radius, softness = constants
    return pixels(ndimage.convolve(unit(images), _disk(radius, softness)[None, :, :, None], mode="mirror"))


def glass(images: Pixels, constants: Constants, generators: Generators) -> Pixels:
    """Pixels replaced by near ones, between two blurs. constants: standard deviation, furthest step, rounds.

    The authors meant to swap pixels, but assigned views of one array to each other, so that the near pixel is copied.
    The published sets were made like this, and so it is done here.
    """
    deviation, furthest, rounds = constants[0], int(constants[1]), int(constants[2])
    shaken = pixels(_smoothed(unit(images), deviation))
    inner = range(images.shape[1] - furthest, furthest, -1)
    everyone = np.arange(len(images))
    shape = (rounds, len(inner), len(inner), 2)
    steps = np.stack([generator.integers(-furthest, furthest, shape) for generator in generators])
    for turn in range(rounds):
        for i, row in enumerate(inner):
            for j, column in enumerate(inner):
                across, down = steps[:, turn, i, j].T
                shaken[:, row, column] = shaken[everyone, row + down, column + across]
    return pixels(_smoothed(unit(shaken), deviation))


def motion(images: Pixels, constants: Constants, generators: Generators) -> Pixels:
    """Moved along a line within 45° of the rows. constants: length and standard deviation, in pixels."""
    return moved(images, constants[0], constants[1], uniforms(generators, (), -SWAY, SWAY))


def zoom(images: Pixels, constants: Constants, generators: Generators) -> Pixels:
    """The mean of an image and its enlargements. constants: where the factors 1, 1.01, … end, by numpy's `arange`."""
    # Pixels first, so that all images are one matrix.
    sharp = np.moveaxis(unit(images), 0, 2)
    blurred = _zooms(images.shape[1], constants[0]) @ sharp.reshape(images.shape[1] ** 2, -1)
    return pixels(np.moveaxis(blurred.reshape(sharp.shape), 2, 0))


def moved(images: Pixels, radius: float, deviation: float, degrees: Floats) -> Pixels:
    """ImageMagick's motion blur: one half of a Gaussian along a line, at the nearest pixels. degrees: (N,).

    images: (N, H, W) or (N, H, W, 3). Pixels beyond the border are those at it.
    """
    steps = np.arange(2 * int(np.ceil(radius)) + 1)
    weights = np.exp(-(steps**2) / (2 * deviation**2))
    angles = np.deg2rad(degrees)[:, None, None, None]
    height, width = images.shape[1:3]
    # (N, 1, 1, steps): which pixel is how many to the right and below.
    across, down = (np.ceil(steps * part - 0.5).astype(np.int64) for part in (np.cos(angles), np.sin(angles)))
    rows, columns = np.arange(height)[None, :, None], np.arange(width)[None, None, :]
    total = np.zeros(images.shape)
    for step, weight in enumerate(weights / weights.sum()):
        there = edge(rows + down[..., step], height), edge(columns + across[..., step], width)
        total += weight * picked(images, *there).astype(np.float64)
    return np.rint(total).astype(np.uint8)


@lru_cache(maxsize=8)
def _zooms(side: int, end: float) -> Floats:
    """All pixels of a square image → all of its zoom blur; (side², side²), and faster than one zoom after another."""
    factors = np.arange(1, end, 0.01)
    total = np.eye(side**2)
    for factor in factors:
        weights = zooming(side, float(factor))
        total += np.kron(weights, weights)
    return total / (len(factors) + 1)


def _smoothed(images: Floats, deviation: float) -> Floats:
    """(N, H, W) or (N, H, W, 3), as skimage's `gaussian` does it."""
    return np.asarray(ndimage.gaussian_filter(images, deviation, mode="nearest", axes=(1, 2)))


def _disk(radius: float, softness: float) -> Floats:
    """A disk of sum 1, smoothed by a Gaussian of 3 × 3 pixels."""
    reach = np.arange(-int(np.ceil(radius)) - 1, int(np.ceil(radius)) + 2)
    disk = (reach**2 + reach[:, None] ** 2 <= radius**2).astype(np.float64)
    bell = np.exp(-np.array([1.0, 0.0, 1.0]) / (2 * softness**2))
    bell /= bell.sum()
    return np.asarray(ndimage.convolve(disk / disk.sum(), np.outer(bell, bell), mode="constant"))
