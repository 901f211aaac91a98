"""A digit drawn askew, off the middle of its field, or partly hidden. Grey images (N, H, W), light on black."""

import numpy as np
from PIL import Image

from models.corruptions.corruption import Constants, Generators
from models.formats import Pixels


def rotation(images: Pixels, constants: Constants, generators: Generators) -> Pixels:
    """About the middle, one way or the other. constants: degrees."""
    turns = [constants[0] * generator.choice((-1, 1)) for generator in generators]
    return np.stack(
        [
            np.asarray(Image.fromarray(image).rotate(turn, Image.Resampling.BILINEAR))
            for image, turn in zip(images, turns, strict=True)
        ]
    )


def translation(images: Pixels, constants: Constants, generators: Generators) -> Pixels:
    """Up or down and left or right; what leaves the field is lost. constants: pixels along each axis."""
    moved = np.zeros_like(images)
    height, width = images.shape[1:]
    for image, into, generator in zip(images, moved, generators, strict=True):
        down, across = (int(constants[0] * way) for way in generator.choice((-1, 1), 2))
        kept = image[max(0, -down) : height - max(0, down), max(0, -across) : width - max(0, across)]
        into[max(0, down) : height + min(0, down), max(0, across) : width + min(0, across)] = kept
    return moved


def occlusion(images: Pixels, constants: Constants, generators: Generators) -> Pixels:
    """A square of paper over it, wholly in the field. constants: its side, in pixels."""
    side = int(constants[0])
    hidden = images.copy()
    for image, generator in zip(hidden, generators, strict=True):
        top, left = (int(generator.integers(0, length - side + 1)) for length in image.shape)
        image[top : top + side, left : left + side] = 0
    return hidden
