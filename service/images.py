"""From an uploaded file to the pixels a network is fed: limits, decoding, orientation, colour, size.

`to_pixels` is the one road from a picture to a network: training and serving both take it. Everything numeric after it
(scaling, normalisation, network, calibration) is inside the exported graph.

A file that ends early is refused, unless all it lacks is a GIF's end marks or the padding of a BMP's last row. So is
one whose data do not fill the size that its header tells, though a viewer would fill up with grey.
Colour profiles, comments and all pictures of an animation but the first are ignored.
"""

import re
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, _webp
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import MARKER, JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from service import bmp, png
from service.alpha import over
from service.digits import digit_pixels
from service.errors import ImageTooLarge, Problem, UndecodableImage, UnsupportedImage
from service.raster import END_MARKS, Picture, Raster, image_of

Pixels = npt.NDArray[np.uint8]

# Segments and blocks that a picture may have: walking through millions of them takes seconds.
MAX_BLOCKS = 20_000
# The most pixels that a byte of a file can hold, of each format: a smaller file is refused before its canvas is made.
# JPEG: a grey block of 8 × 8 takes a bit. PNG: eight pixels a byte, each byte deflated to no less than 1/1032. GIF: a
# code of 12 bits stands for fewer than 4096 pixels.
JPEG_DENSITY, PNG_DENSITY, GIF_DENSITY = 512, 8 * 1032, 4096
# Each row takes time and memory however short it is: of 25 million, a second and 600 MB.
MAX_SIDE = 1_000_000
# A GIF whose first frame leaves some of its canvas bare needs that canvas once more, in colour.
MAX_BARE_PIXELS = 4_000_000
# Each scan of a progressive JPEG goes over the whole picture; encoders write ten.
MAX_SCANS = 100
JPEG_SCAN, JPEG_END = 0xDA, 0xD9
# From one marker to the next, by way of as much rubbish as may be overlooked.
JPEG_MARKER = re.compile(rb"[^\xff]{0,1024}\xff[\xff\0]{0,64}([\x01-\xfe])")
JPEG_SCAN_END = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
JPEG_RESTART = re.compile(rb"\xff([\xd0-\xd7])")
MORE_SCAN = bytes(range(1, 255)) * 2
# A plain PNG up to its pixels: the start; width, height, form and checksum; length and kind of the chunk of pixels.
PLAIN_PNG = struct.Struct(">16sII5sII4s")
PLAIN_PNG_START = png.SIGNATURE + b"\0\0\0\rIHDR"
PLAIN_PNG_END = b"\0\0\0\0IEND"
# So much Pillow's reader hands to its decoder at once; up to there both ways are one call with the same bytes.
MAX_PLAIN_PNG_BYTES = 65_536
# By what the header says after the size: the mode and the channels.
PLAIN_PNG_FORMS = {b"\x08\0\0\0\0": ("L", 1), b"\x08\2\0\0\0": ("RGB", 3), b"\x08\6\0\0\0": ("RGBA", 4)}
GIF_FRAME, GIF_EXTENSION, GIF_CONTROL, GIF_END = b",!\xf9;"
# Run lengths are decoded in Python, some seconds for a picture of the size that is accepted otherwise.
MAX_RUN_LENGTH_PIXELS = 1_000_000

EXIF_ORIENTATION = 0x0112
UPRIGHTING = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class InputSpec:
    """What a network is fed. `mean` and `std` are per channel, of pixels scaled to [0, 1], and live in the graph."""

    kind: Literal["digit", "photo"]
    height: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class Header(NamedTuple):
    """Of an upload: (width, height), and what decodes the rest, upright and 8 bits a channel."""

    size: tuple[int, int]
    picture: Callable[[], Picture]

    @property
    def width(self) -> int:
        return self.size[0]

    @property
    def height(self) -> int:
        return self.size[1]


Reader: TypeAlias = Callable[[bytes, int], Header]


class Accepted(NamedTuple):
    """Formats as a sentence names them, and the reader of each by what its files start with."""

    names: str
    readers: dict[re.Pattern[bytes], Reader]


def accepting(formats: Sequence[str]) -> Accepted:
    """By keys of FORMATS; tried in the order given."""
    *names, last = (name for key, (name, _, _) in FORMATS.items() if key in formats)
    readers = {signature: reader for _, signature, reader in map(FORMATS.__getitem__, formats)}
    return Accepted(" and ".join(filter(None, (", ".join(names), last))), readers)


def read_header(data: bytes, max_pixels: int, accepted: Accepted | None = None) -> Header:
    """An upload whose header is sound and whose pixels are not decoded yet.

    Raises UnsupportedImage (415), UndecodableImage (400) or ImageTooLarge (413).
    """
    if not data:
        raise UndecodableImage("The upload is empty; send the bytes of one image.")
    reader = _reader(data, accepted or USUAL)
    try:
        header = reader(data, max_pixels)
    except Problem:
        raise
    except Exception as error:  # A decoder may raise anything on a hostile header; each is the image's fault.
        raise UndecodableImage("The image is damaged or truncated: its header cannot be read.") from error
    _check_size(header.size, max_pixels)
    return header


def decode(header: Header) -> Picture:
    """The upright picture, 8 bits a channel, mode L, RGB or RGBA; the first frame of an animation.

    Raises UndecodableImage (400).
    """
    try:
        return header.picture()
    except Problem:
        raise
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


def to_pixels(picture: Picture, spec: InputSpec) -> Pixels:
    """A decoded picture of any size, mode L, RGB or RGBA → (spec.height, spec.width, 3) uint8."""
    if picture.mode == "RGBA":
        picture = _without_idle_alpha(image_of(picture))
    return PIXELS[spec.kind](picture, spec)


def _without_idle_alpha(image: Image.Image) -> Image.Image:
    return image.convert("RGB") if image.getchannel("A").getextrema() == (255, 255) else image


def _reader(data: bytes, accepted: Accepted) -> Reader:
    for signature, reader in accepted.readers.items():
        if signature.match(data):
            return reader
    raise UnsupportedImage(f"This is not an image that can be read here; send {accepted.names}.")


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageTooLarge(f"The image has {width} × {height} pixels; at most {max_pixels:,} are accepted.")
    if max(size) > MAX_SIDE:
        raise ImageTooLarge(f"The image has {width} × {height} pixels; at most {MAX_SIDE:,} are accepted in a row.")


def _check_density(size: tuple[int, int], data: bytes, density: int) -> None:
    if size[0] * size[1] > density * len(data):
        raise UndecodableImage("The image is truncated: so few bytes cannot hold so many pixels.")


def _file(image: ImageFile) -> Header:
    return Header(image.size, lambda: _eight_bit(_upright(_loaded(image))))


def _jpeg(data: bytes, max_pixels: int) -> Header:
    scans = _jpeg_scans(data)
    image = JpegImageFile(BytesIO(data))
    return Header(image.size, lambda: _eight_bit(_upright(_filled(image, data, scans))))


def _jpeg_scans(data: bytes) -> int:
    """Where the first scan starts, as Pillow finds it; which may have to walk far to find it."""
    position = 2
    for _ in range(MAX_BLOCKS):
        found = JPEG_MARKER.match(data, position)
        if found is None:
            break
        code, position = found[1][0], found.end()
        if code == JPEG_SCAN:
            return position - 2
        handler = MARKER.get(0xFF00 | code, ("", "", None))[2]
        if handler is not None:
            position += int.from_bytes(data[position : position + 2], "big")
    raise UndecodableImage("The JPEG has no picture where one should be.")


def _filled(image: JpegImageFile, data: bytes, scans: int) -> Image.Image:
    """Raises UndecodableImage where the data do not fill the picture, which the decoder fills up with grey.

    Only a picture that ends in that very grey is looked at twice: with more behind each scan, it must stay the same.
    """
    _check_density(image.size, data, JPEG_DENSITY)
    if data.count(b"\xff\xda", scans) > MAX_SCANS:
        raise UndecodableImage("The JPEG has too many scans.")
    image.load()
    last = image.getpixel((image.width - 1, image.height - 1))
    # CMYK is stored inverted.
    if last in (128, (128,) * 3, (127,) * 4):
        longer = JpegImageFile(BytesIO(_with_more(data, scans)))
        if longer.tobytes() != image.tobytes():
            raise UndecodableImage("The JPEG is truncated.")
    return image


def _with_more(data: bytes, position: int) -> bytes:
    """A JPEG with some more behind each scan, which a decoder that has all it needs passes over."""
    parts, code = [data[:position]], 0
    while code != JPEG_END and position + 4 <= len(data):
        code = data[position + 1]
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if code == JPEG_SCAN:
            found = JPEG_SCAN_END.search(data, end)
            end = found.start() if found else len(data)
            restarts = JPEG_RESTART.findall(data, position, end)
            number = restarts[-1][0] + 1 if restarts else 0
            parts += [data[position:end], *(MORE_SCAN + bytes((0xFF, 0xD0 | (number + i) % 8)) for i in range(8))]
        else:
            parts.append(data[position:end])
        position = end
    return b"".join((*parts, data[position:]))


def _png(data: bytes, max_pixels: int) -> Header:
    plain = _plain_png(data)
    if plain is None:
        essential = png.essential(data)
        plain = _plain_png(essential) or _any_png(essential)
    return plain


def _any_png(essential: bytes) -> Header:
    image = PngImageFile(BytesIO(essential))

    def picture() -> Image.Image:
        _check_density(image.size, essential, PNG_DENSITY)
        return _eight_bit(_upright(_complete(image, essential)))

    return Header(image.size, picture)


def _complete(image: PngImageFile, essential: bytes) -> Image.Image:
    """Raises UndecodableImage where the rows end early, which Pillow does not tell: it leaves the others black.

    A picture that has the very mark where its pixels end is made once more, with the other.
    """
    if _loaded_beyond(image, 0):
        return image
    image = PngImageFile(BytesIO(essential))
    if _loaded_beyond(image, 1):
        return image
    raise UndecodableImage("The PNG is truncated.")


def _loaded_beyond(image: PngImageFile, which: int) -> bool:
    """Whether the picture has another last pixel than the mark that was there before."""
    width, height = image.size
    place = (width - 1, height - 1)
    if image.info.get("interlace"):
        # The last pass has every other row, of a single row every other pixel.
        place = (width - 1, 2 * (height // 2) - 1) if height > 1 else (max(0, 2 * (width // 2) - 1), 0)
    memory = Image.new(image.mode, image.size, None).im
    mark = END_MARKS[image.mode][which]
    memory.putpixel(place, mark)
    image.im = memory
    image.load()
    return bool(memory.getpixel(place) != mark)


def _plain_png(data: bytes) -> Header | None:
    """Of a small PNG of a header, one chunk of pixels and no more, as most are; None of any other."""
    if len(data) < PLAIN_PNG.size:
        return None
    start, width, height, form, checksum, length, kind = PLAIN_PNG.unpack_from(data)
    end = PLAIN_PNG.size + length + 16
    if start != PLAIN_PNG_START or kind != b"IDAT" or end > len(data) or not data.startswith(PLAIN_PNG_END, end - 12):
        return None
    mode, channels = PLAIN_PNG_FORMS.get(form, ("", 0))
    if not (mode and width and height and zlib.crc32(data[12:29]) == checksum):
        return None
    if zlib.crc32(data[37 : end - 16]) != int.from_bytes(data[end - 16 : end - 12], "big"):
        return None
    if max(length, height * (1 + width * channels)) > MAX_PLAIN_PNG_BYTES:
        return None
    return Header((width, height), lambda: _plain_picture(data[:end], mode, (width, height)))


def _plain_picture(plain: bytes, mode: str, size: tuple[int, int]) -> Picture:
    try:
        return Raster.of_png_stream(mode, size, plain[PLAIN_PNG.size : -16])
    except ValueError:
        # Damaged or too short: Pillow's reader decides whether that may be overlooked.
        return _any_png(plain).picture()


def _gif(data: bytes, max_pixels: int) -> Header:
    """Pillow's reader allocates the canvas as soon as it is made, so the size is read here."""
    stripped, at = _stripped_gif(data)
    width, height, left, top, across, down = struct.unpack("<HH", data[6:10]) + struct.unpack_from("<4H", data, at + 1)
    # As in Pillow, a frame beyond its canvas enlarges it.
    size = max(width, left + across), max(height, top + down)
    if (across, down) != size:
        max_pixels = min(max_pixels, MAX_BARE_PIXELS)
    _check_size(size, max_pixels)

    def picture() -> Image.Image:
        _check_density((across, down), data, GIF_DENSITY)
        return _eight_bit(_upright(_loaded(GifImageFile(BytesIO(stripped)))))

    return Header(size, picture)


def _stripped_gif(data: bytes) -> tuple[bytes, int]:
    """What makes the first frame, and where in `data` that frame is described: no comments, nothing about animation."""
    position = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    kept = [data[:position]]
    blocks = 0
    while data[position] != GIF_FRAME:
        start = position
        position += 1
        if data[start] == GIF_EXTENSION:
            position += 1
            while data[position]:
                position += 1 + data[position]
                blocks += 1
                if blocks > MAX_BLOCKS:
                    raise UndecodableImage(f"The GIF has more than {MAX_BLOCKS:,} blocks before its picture.")
            position += 1
            if data[start + 1] == GIF_CONTROL:
                # Without what becomes of the frame when the next comes.
                kept += [data[start : start + 3], bytes((data[start + 3] & ~0x1C,)), data[start + 4 : position]]
        blocks += 1
        if data[start] == GIF_END or blocks > MAX_BLOCKS:
            raise UndecodableImage("The GIF has no picture.")
    return b"".join((*kept, data[position:])), position


def _webp_header(data: bytes, max_pixels: int) -> Header:
    """Its decoder allocates the canvas as soon as it is made, so the size is read here."""
    match data[12:16]:
        case b"VP8X":
            width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
        case b"VP8L":
            bits = int.from_bytes(data[21:25], "little")
            width, height = (1 + (bits >> shift & 0x3FFF) for shift in (0, 14))
        case _:
            width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    size = width, height
    _check_size(size, max_pixels)

    return Header(size, lambda: _webp_frame(data, size))


def _webp_frame(data: bytes, size: tuple[int, int]) -> Image.Image:
    """The first frame. Pillow's own reader would keep the decoder's two canvases and make two copies more."""
    decoder = _webp.WebPAnimDecoder(data)
    canvas, *_, mode = decoder.get_info()
    if canvas != size:
        raise UndecodableImage("The WebP has two sizes.")
    exif, (pixels, _) = decoder.get_chunk("EXIF"), decoder.get_next()
    del decoder
    image = Image.frombuffer(mode, size, pixels, "raw", mode, 0, 1)
    if mode == "RGBX":
        image = image.convert("RGB")
    image.info["exif"] = exif or b""
    return _upright(image)


def _bmp(data: bytes, max_pixels: int) -> Header:
    header = bmp.bitmap(data)
    if header.has_runs:
        _check_size(header.size, min(max_pixels, MAX_RUN_LENGTH_PIXELS))
    return Header(header.size, lambda: bmp.picture(header, data))


def _tiff(data: bytes, max_pixels: int) -> Header:
    """Only where the settings accept it. Pillow turns it upright as it loads."""
    from PIL.TiffImagePlugin import TiffImageFile

    image = TiffImageFile(BytesIO(data))

    def picture() -> Image.Image:
        if image.mode in ("I", "F"):
            raise UndecodableImage("What is white in a TIFF of 32 bits a pixel is not known.")
        _check_size(image.size, max_pixels)
        image.load()
        return _eight_bit(image)

    return Header(image.size, picture)


def _avif(data: bytes, max_pixels: int) -> Header:
    """Only where the settings accept it."""
    from PIL import AvifImagePlugin

    # Threads of its own would take the cores from others.
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    return _file(AvifImagePlugin.AvifImageFile(BytesIO(data)))


def _loaded(image: ImageFile) -> Image.Image:
    """The first frame; what it leaves bare of its canvas is transparent, as in a browser."""
    frame = image.tile[0].extents if image.tile else None
    image.load()
    if frame is None or frame == (0, 0, *image.size):
        return image
    canvas = Image.new("RGBA", image.size)
    canvas.paste(image.convert("RGBA").crop(frame), frame)
    return canvas


def _upright(image: Image.Image) -> Image.Image:
    turn = UPRIGHTING.get(_orientation(image.info.get("exif", b"")))
    return image if turn is None else image.transpose(turn)


def _orientation(exif: bytes) -> int:
    """The orientation tag of the first directory, 1 if there is none: other tags may be as broken as they like."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = ">" if tiff.startswith(b"MM") else "<"
    try:
        (directory,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, directory)
        for at in range(directory + 2, directory + 2 + 12 * entries, 12):
            tag, value = struct.unpack_from(order + "H6xH", tiff, at)
            if tag == EXIF_ORIENTATION:
                return int(value)
    except struct.error:
        pass
    return 1


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _of_sixteen_bit(image)
    if image.mode in ("RGBA", "LA") or "transparency" in image.info:
        mode = "RGBA"
    else:
        mode = "L" if image.mode in ("1", "L") else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _of_sixteen_bit(image: Image.Image) -> Image.Image:
    """Pillow would clip 16-bit grey to white; of 16-bit colour it takes the high bytes, and so does this."""
    levels, clear = np.asarray(image), image.info.get("transparency")
    grey = Image.fromarray((levels >> 8).astype(np.uint8))
    if clear is None:
        return grey
    return Image.merge("RGBA", (grey, grey, grey, Image.fromarray(levels != clear).convert("L")))


def _photo_pixels(picture: Picture, spec: InputSpec) -> Pixels:
    """The largest centred crop of the network's shape, resampled with antialiasing; transparency becomes white."""
    size = (spec.width, spec.height)
    if isinstance(picture, Raster) and picture.mode == "RGB" and picture.size == size:
        return picture.array()
    image = image_of(picture)
    if image.size != size:
        scale = min(image.width / spec.width, image.height / spec.height)
        width, height = scale * spec.width, scale * spec.height
        left, top = (image.width - width) / 2, (image.height - height) / 2
        box = (left, top, left + width, top + height)
        image = image.resize(size, Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
    if image.mode == "RGBA":
        image = over(image, 255)
    if image.mode != "RGB":
        image = image.convert("RGB")
    return Raster.of(image).array()


# By the name in the settings: that for people, what its files start with, its reader. The first picture of a phone's
# multi-picture JPEG is a JPEG like any other.
FORMATS: dict[str, tuple[str, re.Pattern[bytes], Reader]] = {
    "jpeg": ("JPEG", re.compile(rb"\xff\xd8\xff"), _jpeg),
    "png": ("PNG", re.compile(re.escape(png.SIGNATURE)), _png),
    "gif": ("GIF", re.compile(rb"GIF8[79]a"), _gif),
    "webp": ("WebP", re.compile(rb"RIFF....WEBP", re.DOTALL), _webp_header),
    "bmp": ("BMP", re.compile(rb"BM.{12}[\x0c-\x7c]\0\0\0", re.DOTALL), _bmp),
    "tiff": ("TIFF", re.compile(rb"II\*\0|MM\0\*"), _tiff),
    "avif": ("AVIF", re.compile(rb"....ftypavi[fs]", re.DOTALL), _avif),
}
USUAL = accepting(("png", "jpeg", "gif", "webp", "bmp"))

PIXELS: dict[str, Callable[[Picture, InputSpec], Pixels]] = {
    "digit": lambda picture, spec: digit_pixels(picture, spec.height, spec.width),
    "photo": _photo_pixels,
}
