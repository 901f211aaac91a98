"""Noise of a sensor and of its wires: Gaussian, Poisson, and values lost altogether. Grey and colour images alike."""

import numpy as np

from models.corruptions.corruption import Constants, Generators, normals, pixels, uniforms, unit
from models.formats import Pixels


def gaussian(images: Pixels, constants: Constants, generators: Generators) -> Pixels:
    """constants: standard deviation, of pixels in [0, 1]."""
    (deviation,) = constants
    return pixels(unit(images) + deviation * normals(generators, images.shape[1:]))


def shot(images: Pixels, constants: Constants, generators: Generators) -> Pixels:
    """Poisson noise. constants: photons that make a white pixel."""
    (photons,) = constants
    counts = [generator.poisson(image * photons) for generator, image in zip(generators, unit(images), strict=True)]
    return pixels(np.stack(counts) / photons)


def impulse(images: Pixels, constants: Constants, generators: Generators) -> Pixels:
    """Salt and pepper, in each channel by itself. constants: the share of values that are replaced."""
    (share,) = constants
    draws = uniforms(generators, images.shape[1:])
    return np.where(draws < share / 2, 0, np.where(draws < share, 255, images)).astype(np.uint8)
