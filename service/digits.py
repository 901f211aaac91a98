"""A picture of one digit, however drawn → the pixels MNIST's authors would have made of it."""

from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from service.alpha import contrasting_background, over
from service.raster import Picture, Pixels, Raster, image_of

# Of a drawing's inked part: the first row and the first beyond it, and the same of columns.
Outline: TypeAlias = tuple[int, int, int, int]

# MNIST's frame (LeCun et al. 1998, section III.A): a digit fits a 20 × 20 box and its centre of mass is the centre
# of a 28 × 28 field.
DIGIT_BOX = 20
# Within this range of its box a digit is left unscaled: resampling a digit that already fits only blurs it.
SCALES_LEFT_ALONE = (0.9, 1.12)
# Large drawings are averaged down to about this side first; what matters of them fits in 20 pixels.
DIGIT_WORKING_SIDE = 400
# Contrast under this many of 255 grey levels is paper, not ink.
FAINTEST_INK = 8.0
# Of 255: what belongs to a stroke for certain.
INKED = 64
# An outline is a rectangle if this much of it is inked.
RECTANGULAR = 0.9
# Up to this many pixels Python's bytes are faster than numpy's arrays, which need a microsecond for anything.
SMALL = 64 * 64
IS_INKED = bytes(level >= INKED for level in range(256))
INVERSE = bytes(reversed(range(256)))


def digit_pixels(picture: Picture, height: int, width: int) -> Pixels:
    """One digit, dark on light or light on dark → light on black, sized and centred as MNIST's authors did."""
    field = np.zeros((height, width, 3), np.uint8)
    grey = _grey(picture)
    inked = _clean_ink(grey) or _any_ink(grey)
    if inked is not None:
        digit = _fitted(*inked)
        (rows, columns), (down, across) = digit.shape, _centre_of_mass(digit)
        top, left = _offset(rows, down, height), _offset(columns, across, width)
        place = field[top : top + rows, left : left + columns]
        # One after another takes numpy half as long as to spread each pixel over the channels.
        place[..., 0] = digit
        place[..., 1] = digit
        place[..., 2] = digit
    return field


def _grey(picture: Picture) -> Raster:
    factor = max(picture.size) // DIGIT_WORKING_SIDE
    if isinstance(picture, Raster) and picture.mode == "L" and factor <= 1:
        return picture
    image = image_of(picture)
    if factor > 1:
        image = image.reduce(factor)
    if image.mode == "RGBA":
        image = over(image, contrasting_background(image))
    if image.mode != "L":
        image = image.convert("L")
    return Raster.of(image)


def _clean_ink(grey: Raster) -> tuple[Pixels, Outline] | None:
    """What `_any_ink` finds in small clean drawings, most of all digits: white on black or black on white, not bold.

    A third of the time. None of any other picture, though there may be ink in it.
    """
    pixels, (width, height) = grey.pixels, grey.size
    if len(pixels) > SMALL:
        return None
    paper = _most(pixels[:width] + pixels[-width:] + pixels[::width] + pixels[width - 1 :: width])
    if paper == 255:
        pixels = pixels.translate(INVERSE)
    elif paper != 0:
        return None
    inked = pixels.translate(IS_INKED)
    if 255 not in pixels or 2 * inked.count(True) > len(inked):
        return None
    top, bottom = inked.index(True) // width, inked.rindex(True) // width + 1
    left, right = 0, width
    while True not in inked[left::width]:
        left += 1
    while True not in inked[right - 1 :: width]:
        right -= 1
    return np.ndarray((height, width), np.uint8, pixels), (top, bottom, left, right)


def _any_ink(grey: Raster) -> tuple[Pixels, Outline] | None:
    """How much of each pixel is ink, 0–255, and the outline of what is for certain; None if there is none."""
    ink = _ink(grey.array())
    if ink is None:
        return None
    inked = ink >= INKED
    rows, columns = (_extent(np.logical_or.reduce(inked, axis)) for axis in (1, 0))
    return ink, (rows.start, rows.stop, columns.start, columns.stop)


def _ink(grey: Pixels) -> Pixels | None:
    """How much of each pixel is ink, 0–255; None if there is none."""
    ink = _contrast(grey)
    if ink is None or np.count_nonzero(ink >= INKED) <= ink.size / 2:
        return ink
    # So much ink is a bold digit or, if its outline is a rectangle, the paper within a frame.
    rows, columns = (_inset(_extent(profile > profile.max() / 2)) for profile in (ink.sum(1), ink.sum(0)))
    if np.mean(_border(ink[rows, columns]) >= INKED) < RECTANGULAR:
        return ink
    inner = _contrast(grey[rows, columns])
    return ink if inner is None else inner


def _extent(profile: npt.NDArray[np.bool_]) -> slice:
    """From the first to the last that is true."""
    flags = profile.tobytes()
    return slice(flags.index(True), flags.rindex(True) + 1)


def _inset(extent: slice) -> slice:
    """Without the outermost twentieth, which may be a blurred edge."""
    margin = (extent.stop - extent.start) // 20
    return slice(extent.start + margin, extent.stop - margin)


def _contrast(grey: Pixels) -> Pixels | None:
    """How much darker or lighter than its paper each pixel is, stretched to 0–255; None if it is all paper."""
    level = _even_level(grey)
    ink = _uneven_ink(grey) if level is None else _even_ink(grey, level)
    peak = float(ink.max())
    return _stretched(ink, peak) if peak >= FAINTEST_INK else None


def _even_level(grey: Pixels) -> int | None:
    """The grey of paper that is of one grey. If most of the border is, so are its median and no noise beside it."""
    return _most(_border(grey).tobytes())


def _most(values: bytes) -> int | None:
    """What more than half of them are, if it is as the first."""
    return values[0] if 2 * values.count(values[0]) > len(values) else None


def _even_ink(grey: Pixels, level: int) -> Pixels:
    """What `_uneven_ink` finds where there is no noise, in bytes: a third of the time, and most pictures are such."""
    if level in (0, 255):
        # There is no darker than black nor lighter than white.
        return grey if level == 0 else np.invert(grey)
    light: Pixels = np.maximum(grey, level) - level
    dark: Pixels = level - np.minimum(grey, level)
    return light if _power(light.astype(np.float64)) >= _power(dark.astype(np.float64)) else dark


def _uneven_ink(grey: Pixels) -> npt.NDArray[np.float64]:
    paper, noise = _paper(grey)
    deviation = grey - paper
    light: npt.NDArray[np.float64] = np.maximum(deviation - noise, 0)
    dark: npt.NDArray[np.float64] = np.maximum(-deviation - noise, 0)
    return light if _power(light) >= _power(dark) else dark


def _power(ink: npt.NDArray[np.float64]) -> float:
    """The sum of squares, lest a broad faint light outweighs thin strokes."""
    return float(np.vdot(ink, ink))


def _paper(grey: Pixels) -> tuple[float | npt.NDArray[np.float64], float]:
    """What the picture would be without ink, by its border, and three standard deviations of its noise.

    Evenly lit paper is a number. If the light is uneven, a plane through the medians of the four edges may fit better.
    """
    paper, noise = _centre_and_noise(_border(grey))
    if not noise:
        return paper, noise
    top, bottom, left, right = map(_median, (grey[0], grey[-1], grey[:, 0], grey[:, -1]))
    height, width = grey.shape
    rows, columns = np.linspace(-0.5, 0.5, height)[:, None], np.linspace(-0.5, 0.5, width)
    slope = (bottom - top) * rows + (right - left) * columns
    level, rest_noise = _centre_and_noise(_border(grey - slope))
    return (slope + level, rest_noise) if rest_noise < noise else (paper, noise)


def _border(picture: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.concatenate((picture[0], picture[-1], picture[:, 0], picture[:, -1]))


def _centre_and_noise(values: npt.NDArray[Any]) -> tuple[float, float]:
    """The median and three standard deviations, as the median absolute deviation estimates them."""
    centre = _median(values)
    return centre, 3 * 1.4826 * _median(np.abs(values - centre))


def _median(values: npt.NDArray[Any]) -> float:
    """As numpy's, which takes longer over a few values than all the rest of a digit's way."""
    ordered = np.sort(values)
    return (float(ordered[(len(ordered) - 1) // 2]) + float(ordered[len(ordered) // 2])) / 2


def _stretched(ink: npt.NDArray[Any], peak: float) -> Pixels:
    if peak == 255 and ink.dtype == np.uint8:
        # Nothing to stretch, as in nearly every clean drawing.
        return ink
    return np.asarray(np.rint(ink * (255 / peak)), np.uint8)


def _fitted(ink: Pixels, outline: Outline) -> Pixels:
    """The inked part, its longer side scaled to MNIST's box."""
    top, bottom, left, right = outline
    longest = max(bottom - top, right - left)
    scale = DIGIT_BOX / longest
    # The faint outline of a stroke belongs to it; scaled up, that of a mere dot would not fit the field.
    margin = max(min(1, longest // 5), round(longest / DIGIT_BOX))
    crop = ink[max(0, top - margin) : bottom + margin, max(0, left - margin) : right + margin]
    if SCALES_LEFT_ALONE[0] <= scale <= SCALES_LEFT_ALONE[1]:
        return crop
    height, width = (max(1, round(side * scale)) for side in crop.shape)
    digit = Raster.of(Image.fromarray(crop).resize((width, height), Image.Resampling.BICUBIC)).array()
    # Thin strokes fade when averaged down; MNIST's reach white.
    return _stretched(digit, max(1, int(digit.max())))


def _centre_of_mass(digit: Pixels) -> tuple[float, float]:
    """Down and across."""
    height, width = digit.shape
    # Sums of whole numbers below 2⁵³, so exact in whatever order.
    (mass, across), (down, _) = _powers(height).T.dot(digit).dot(_powers(width)).tolist()
    return down / max(1.0, mass), across / max(1.0, mass)


@lru_cache
def _powers(side: int) -> npt.NDArray[np.float64]:
    """The zeroth and first power of each index: (side, 2)."""
    return np.vander(np.arange(side, dtype=np.float64), 2, increasing=True)


def _offset(side: int, centre: float, field: int) -> int:
    """Where a digit starts along one axis so that its centre of mass is the field's centre, kept inside."""
    return min(max(0, round(field / 2 - centre)), field - side)
