"""What becomes of an image between camera and reader: contrast, warping, coarse pixels, JPEG."""

from io import BytesIO

import numpy as np
from PIL import Image
from scipy import ndimage

from models.corruptions.corruption import Constants, Floats, Generators, pixels, uniforms, unit
from models.corruptions.sampling import bilinear, mirrored, reflected
from models.formats import Pixels


def contrast(images: Pixels, constants: Constants, generators: Generators) -> Pixels:
    """Drawn to each channel's mean. constants: the share of the distance that is left."""
    scaled = unit(images)
    means = scaled.mean(axis=(1, 2), keepdims=True)
    return pixels((scaled - means) * constants[0] + means)


def elastic(images: Pixels, constants: Constants, generators: Generators) -> Pixels:
    """Tilted and stretched as a whole, then in places.

    constants, in shares of the side: how far pixels move in places, standard deviation of the blur that makes
    neighbours move alike, how far three corners are moved. By the authors' choice the last falls as the others get
    rougher: a higher severity bends shapes more, though its pixels differ less from the image's.
    """
    amount, smoothness, tilt = (share * images.shape[1] for share in constants)
    tilted = _tilted(unit(images), uniforms(generators, (3, 2), -tilt, tilt))
    draws = uniforms(generators, (2, *images.shape[1:3]), -1, 1)
    moves = amount * ndimage.gaussian_filter(draws, smoothness, mode="reflect", truncate=3, axes=(2, 3))
    rows, columns = _grid(images)
    # Of the two, the authors drew the horizontal one first.
    return pixels(bilinear(tilted, rows + moves[:, 1], columns + moves[:, 0], reflected))


def pixelate(images: Pixels, constants: Constants, generators: Generators) -> Pixels:
    """constants: the share of the side that is left."""
    height, width = images.shape[1:3]
    coarse = int(width * constants[0]), int(height * constants[0])
    box = Image.Resampling.BOX
    return np.stack(
        [np.asarray(Image.fromarray(image).resize(coarse, box).resize((width, height), box)) for image in images]
    )


def jpeg(images: Pixels, constants: Constants, generators: Generators) -> Pixels:
    """constants: quality, of 100."""
    return np.stack([_compressed(image, int(constants[0])) for image in images])


def _compressed(image: Pixels, quality: int) -> Pixels:
    file = BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    with Image.open(file) as decoded:
        return np.asarray(decoded)


def _grid(images: Pixels | Floats) -> tuple[Floats, Floats]:
    """Each pixel's row and column, (1, H, 1) and (1, 1, W)."""
    height, width = images.shape[1:3]
    return np.arange(float(height))[None, :, None], np.arange(float(width))[None, None, :]


def _tilted(images: Floats, moves: Floats) -> Floats:
    """Moved by the affine map that moves three points around the middle; moves (N, 3, 2), across and down."""
    middle, reach = images.shape[1] // 2, images.shape[1] // 3
    before = middle + reach * np.array([(1.0, 1.0), (1.0, -1.0), (-1.0, -1.0)])
    after = np.concatenate([before + moves, np.ones((len(moves), 3, 1))], axis=2)
    # Each pixel looks where it came from: after @ back = before.
    back = np.linalg.solve(after, np.broadcast_to(before, moves.shape))
    rows, columns = _grid(images)
    x, y = (
        columns * back[:, 0, axis, None, None] + rows * back[:, 1, axis, None, None] + back[:, 2, axis, None, None]
        for axis in (0, 1)
    )
    return bilinear(images, y, x, mirrored)
