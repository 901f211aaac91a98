"""Snow, frost, fog and the sun."""

import numpy as np

from models.corruptions.blur import moved
from models.corruptions.corruption import (
    Constants,
    Floats,
    Generators,
    normals,
    per_image,
    pixels,
    uniforms,
    unit,
)
from models.corruptions.sampling import zoomed
from models.formats import Pixels

# Of grey: red, green and blue as ITU-R BT.601 weighs them.
LUMA = np.array([0.299, 0.587, 0.114])
# Degrees, between which snow falls.
FALL = -135.0, -45.0
# The ice of a window is of this colour where it is thickest.
ICE = np.array([0.85, 0.93, 1.0])
# A plasma is made of squares of squares, and wraps around; ice is cut from a larger one, so that it does not.
ICE_SIDE, ICE_DECAY = 64, 1.3


def snow(images: Pixels, constants: Constants, generators: Generators) -> Pixels:
    """Flakes that fall, and their likeness turned by 180°, over an image made paler.

    constants: mean and standard deviation of the flakes' normal noise, enlarged by, what is darker is no flake,
    length and standard deviation of the blur they fall with, share of the image that stays as it was.
    """
    mean, deviation, size, faintest, radius, blur, kept = constants
    flakes = zoomed((mean + deviation * normals(generators, images.shape[1:3]))[..., None], size)[..., 0]
    flakes[flakes < faintest] = 0
    falling = unit(moved(pixels(flakes), radius, blur, uniforms(generators, (), *FALL)))
    clear = unit(images)
    pale = np.maximum(clear, (clear @ LUMA)[..., None] * 1.5 + 0.5)
    layer = (falling + falling[:, ::-1, ::-1])[..., None]
    return pixels(kept * clear + (1 - kept) * pale + layer)


def frost(images: Pixels, constants: Constants, generators: Generators) -> Pixels:
    """Ice before an image. constants: weights of the image and of the ice.

    The authors cut the ice from six photographs. It is drawn here, so these figures are like the published ones in
    kind, not in value.
    """
    kept, added = constants
    side = images.shape[1]
    # Ridges of a plasma branch as crystals do (Musgrave 1993).
    ridges = 1 - np.abs(2 * plasma(generators, ICE_SIDE, ICE_DECAY) - 1)
    ice = (ridges**2)[:, :side, :side, None] * ICE
    return pixels(kept * unit(images) + added * ice)


def fog(images: Pixels, constants: Constants, generators: Generators) -> Pixels:
    """Banks of grey. constants: how thick, and by how much finer banks are thinner."""
    thickness, decay = constants
    clear = unit(images)
    brightest = per_image(clear.max(axis=(1, 2, 3)), clear)
    banks = thickness * plasma(generators, images.shape[1], decay)[..., None]
    return pixels((clear + banks) * brightest / (brightest + thickness))


def brightness(images: Pixels, constants: Constants, generators: Generators) -> Pixels:
    """More of the value of hue, saturation and value. constants: by how much, of 1.

    Colours of one hue and saturation are multiples of each other, so this needs no conversion.
    """
    colours = unit(images)
    value = colours.max(axis=3, keepdims=True)
    brighter = np.clip(value + constants[0], 0, 1)
    black = value == 0
    return pixels(np.where(black, brighter, colours * brighter / np.where(black, 1, value)))


def plasma(generators: Generators, side: int, decay: float) -> Floats:
    """Height maps (N, side, side) in [0, 1], of all scales (diamond-square; Fournier, Fussell, Carpenter 1982).

    side: a power of two. The maps wrap around. decay: by how much the noise of half the scale is weaker, before it is
    squared, which is how the authors' recipe has it.
    """
    maps = np.zeros((len(generators), side, side))
    step, amplitude = side, 100.0
    while step >= 2:
        half = step // 2
        shape = (3, side // step, side // step)
        noise = amplitude * uniforms(generators, shape, -amplitude, amplitude)
        corners = maps[:, ::step, ::step]
        pairs = corners + np.roll(corners, -1, axis=1)
        maps[:, half::step, half::step] = (pairs + np.roll(pairs, -1, axis=2)) / 4 + noise[:, 0]
        middles = maps[:, half::step, half::step]
        beside = middles + np.roll(middles, 1, axis=1) + corners + np.roll(corners, -1, axis=2)
        maps[:, ::step, half::step] = beside / 4 + noise[:, 1]
        above = middles + np.roll(middles, 1, axis=2) + corners + np.roll(corners, -1, axis=1)
        maps[:, half::step, ::step] = above / 4 + noise[:, 2]
        step, amplitude = half, amplitude / decay
    maps -= maps.min(axis=(1, 2), keepdims=True)
    return maps / maps.max(axis=(1, 2), keepdims=True)
