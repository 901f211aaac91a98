"""From an uploaded file to the pixels a network is fed: limits, decoding, orientation, colour, size.

`to_pixels` is the one road from a picture to a network: training and serving both take it. Everything numeric after it
(scaling, normalisation, network, calibration) is inside the exported graph.
"""

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    WebPImagePlugin,
)

from service.errors import ImageTooLarge, UndecodableImage, UnsupportedImage

Pixels = npt.NDArray[np.uint8]

# Importing a plugin is what lets Pillow open its format; the list of plugins is the list of formats.
FORMATS = tuple(
    plugin.format
    for plugin in (
        JpegImagePlugin.JpegImageFile,  # phones' multi-picture JPEGs (MPO) too
        PngImagePlugin.PngImageFile,
        GifImagePlugin.GifImageFile,
        WebPImagePlugin.WebPImageFile,
        BmpImagePlugin.BmpImageFile,
    )
)
ACCEPTED = "JPEG, PNG, GIF, WebP and BMP"
PNG_SIGNATURE, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
SIGNATURES = (PNG_SIGNATURE, b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"BM")

# MNIST's frame (LeCun et al. 1998, section III.A): a digit fits a 20 × 20 box and its centre of mass is the centre
# of a 28 × 28 field.
DIGIT_BOX = 20
# Within this range of its box a digit is left unscaled: resampling a digit that already fits only blurs it.
SCALES_LEFT_ALONE = (0.9, 1.12)
# Large drawings are averaged down to about this side first; what matters of them fits in 20 pixels.
DIGIT_WORKING_SIDE = 400
# Contrast under this many of 255 grey levels is paper, not ink.
FAINTEST_INK = 8.0


@dataclass(frozen=True)
class InputSpec:
    """What a network is fed. `mean` and `std` are per channel, of pixels scaled to [0, 1], and live in the graph."""

    kind: Literal["digit", "photo"]
    height: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def read_header(data: bytes, max_pixels: int) -> Image.Image:
    """An upload whose header is sound and whose pixels are not decoded yet.

    Raises UnsupportedImage (415), UndecodableImage (400) or ImageTooLarge (413).
    """
    if not data:
        raise UndecodableImage("The upload is empty; send the bytes of one image.")
    if not _has_signature(data):
        raise UnsupportedImage(f"This is not an image that can be read here; send {ACCEPTED}.")
    try:
        image = Image.open(BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageTooLarge(f"The image has more pixels than the {max_pixels:,} accepted.") from error
    except Exception as error:  # A decoder may raise anything on a hostile header; each is the image's fault.
        raise UndecodableImage("The image is damaged or truncated: its header cannot be read.") from error
    if image.width * image.height > max_pixels:
        raise ImageTooLarge(f"The image has {image.width} × {image.height} pixels; at most {max_pixels:,} are accepted.")
    if data.startswith(PNG_SIGNATURE) and PNG_END not in data:
        # Pillow takes a PNG that ends early for whole once it has enough pixels.
        raise UndecodableImage("The PNG is truncated: it has no end chunk.")
    return image


def decode(image: Image.Image) -> Image.Image:
    """The upright picture, 8 bits a channel, mode L, RGB or RGBA; the first frame of an animation.

    Raises UndecodableImage (400).
    """
    try:
        image.load()
        return _eight_bit(_upright(image))
    except Exception as error:  # As above, for the pixels.
        raise UndecodableImage("The image is damaged or truncated: its pixels cannot be read.") from error


def of_array(array: npt.NDArray[Any]) -> Image.Image:
    """A picture from whole numbers 0 to 255: (H, W) grey, (H, W, 3) colour or (H, W, 4) with alpha.

    Raises UndecodableImage.
    """
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))) or array.size == 0:
        raise UndecodableImage(f"An array of shape {array.shape} is no image; (H, W), (H, W, 3) and (H, W, 4) are.")
    if array.dtype.kind not in "iuf" or ((array < 0) | (array > 255) | (array % 1 != 0)).any():
        raise UndecodableImage("Pixels are whole numbers from 0 to 255.")
    return Image.fromarray(np.ascontiguousarray(array, np.uint8))


def to_pixels(image: Image.Image, spec: InputSpec) -> Pixels:
    """A decoded picture of any size, mode L, RGB or RGBA → (spec.height, spec.width, 3) uint8."""
    return PIXELS[spec.kind](image, spec)


def _has_signature(data: bytes) -> bool:
    return data.startswith(SIGNATURES) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # Unreadable EXIF does not spoil readable pixels.
        return image


def _eight_bit(image: Image.Image) -> Image.Image:
    match image.mode:
        case "L" | "RGB" if "transparency" not in image.info:
            return image
        case "1":
            return image.convert("L")
        case "I" | "I;16" | "I;16L" | "I;16B" | "I;16N":
            # Pillow's own conversion clips 16-bit grey to white.
            wide = np.asarray(image).astype(np.int64).clip(0, 65535)
            return Image.fromarray(((wide + 128) // 257).astype(np.uint8))
        case "RGBA" | "LA" | "PA" | "La" | "RGBa":
            return image.convert("RGBA")
        case _ if "transparency" in image.info:
            return image.convert("RGBA")
        case _:
            return image.convert("RGB")


def _photo_pixels(image: Image.Image, spec: InputSpec) -> Pixels:
    """The largest centred crop of the network's shape, resampled with antialiasing; transparency becomes white."""
    image = _opaque(image, background=255).convert("RGB")
    size = (spec.width, spec.height)
    if image.size != size:
        scale = min(image.width / spec.width, image.height / spec.height)
        width, height = scale * spec.width, scale * spec.height
        left, top = (image.width - width) / 2, (image.height - height) / 2
        box = (left, top, left + width, top + height)
        image = image.resize(size, Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
    return np.asarray(image)


def _digit_pixels(image: Image.Image, spec: InputSpec) -> Pixels:
    """One digit, dark on light or light on dark → light on black, sized and centred as MNIST's authors did."""
    field = np.zeros((spec.height, spec.width), np.uint8)
    ink = _ink(_grey(image))
    if ink is not None:
        digit = _fitted(ink)
        top = _offset(digit.sum(1, dtype=np.int64), spec.height)
        left = _offset(digit.sum(0, dtype=np.int64), spec.width)
        field[top : top + digit.shape[0], left : left + digit.shape[1]] = digit
    return np.repeat(field[:, :, None], 3, axis=2)


def _grey(image: Image.Image) -> Pixels:
    image = _opaque(image, background=_contrasting_background(image)).convert("L")
    factor = max(image.size) // DIGIT_WORKING_SIDE
    return np.asarray(image.reduce(factor) if factor > 1 else image)


def _opaque(image: Image.Image, background: int) -> Image.Image:
    if image.mode != "RGBA":
        return image
    paper = Image.new("RGBA", image.size, (background, background, background, 255))
    return Image.alpha_composite(paper, image)


def _contrasting_background(image: Image.Image) -> int:
    """Black under light strokes on transparency, else white."""
    if image.mode != "RGBA":
        return 255
    alpha = np.asarray(image.getchannel("A"), np.float64)
    grey = np.asarray(image.convert("L"), np.float64)
    covered = alpha.sum()
    return 0 if covered and (alpha * grey).sum() / covered > 128 and alpha.min() < 255 else 255


def _ink(grey: Pixels) -> Pixels | None:
    """How much darker or lighter than its paper each pixel is, stretched to 0–255; None if there is no ink."""
    border = np.concatenate((grey[0], grey[-1], grey[:, 0], grey[:, -1]))
    paper = float(np.median(border))
    noise = 3 * 1.4826 * float(np.median(np.abs(border - paper)))
    deviation = grey - paper
    light = np.maximum(deviation - noise, 0)
    dark = np.maximum(-deviation - noise, 0)
    ink = light if light.sum() >= dark.sum() else dark
    peak = float(ink.max())
    return _stretched(ink, peak) if peak >= FAINTEST_INK else None


def _stretched(ink: npt.NDArray[np.floating], peak: float) -> Pixels:
    return np.rint(ink * (255 / peak)).astype(np.uint8)


def _fitted(ink: Pixels) -> Pixels:
    """The inked part, its longer side scaled to MNIST's box."""
    rows, columns = (np.flatnonzero((ink >= 64).any(axis)) for axis in (1, 0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    longest = max(bottom - top, right - left)
    scale = DIGIT_BOX / longest
    # The faint outline of a stroke belongs to it.
    margin = max(1, round(longest / DIGIT_BOX))
    crop = ink[max(0, top - margin) : bottom + margin, max(0, left - margin) : right + margin]
    if SCALES_LEFT_ALONE[0] <= scale <= SCALES_LEFT_ALONE[1]:
        return crop
    height, width = (max(1, round(side * scale)) for side in crop.shape)
    resized = Image.fromarray(crop).resize((width, height), Image.Resampling.BICUBIC)
    digit = np.asarray(resized, np.float64)
    # Thin strokes fade when averaged down; MNIST's reach white.
    return _stretched(digit, digit.max())


def _offset(profile: npt.NDArray[np.int64], field: int) -> int:
    """Where a digit's profile along one axis starts so that its centre of mass is the field's centre, kept inside."""
    centre = float(profile @ np.arange(len(profile))) / float(profile.sum())
    return min(max(0, round(field / 2 - centre)), field - len(profile))


PIXELS: dict[str, Callable[[Image.Image, InputSpec], Pixels]] = {
    "digit": _digit_pixels,
    "photo": _photo_pixels,
}
