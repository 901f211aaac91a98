"""A BMP as Windows or OS/2 wrote it: any number of bits a pixel, any masks, run lengths, and headers of any age.

Pillow reads fewer. Not read are those that hold a JPEG, a PNG or OS/2's own codes, which browsers do not show either.
"""

import struct
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from service.errors import UndecodableImage

Levels = npt.NDArray[np.uint8]

FILE_HEADER_BYTES = 14
# Lengths of the second header: of OS/2 1; of OS/2 2, which may end early; of Windows, which OS/2 may also mean.
CORE_HEADER, OS2_HEADERS, WINDOWS_HEADERS = 12, range(16, 65), (40, 52, 56, 108, 124)
# Codes of run lengths, behind a 0.
END_OF_ROW, END_OF_PICTURE, MOVE = 0, 1, 2
RAW, RUNS_OF_8, RUNS_OF_4, BITFIELDS, ALPHA_BITFIELDS = 0, 1, 2, 3, 6
# The bits a pixel that each may have.
CODINGS = {
    RAW: (1, 2, 4, 8, 16, 24, 32),
    RUNS_OF_8: (8,),
    RUNS_OF_4: (4,),
    BITFIELDS: (16, 24, 32),
    ALPHA_BITFIELDS: (16, 32),
}
# Which bits are red, green, blue and alpha; 0 where there is none.
MASKS_AT = 54
USUAL_MASKS = {16: (0x7C00, 0x3E0, 0x1F, 0), 32: (0xFF0000, 0xFF00, 0xFF, 0)}
# Pixels of 16 and 32 bits are taken apart so many at a time: each takes some 20 bytes meanwhile.
PIXELS_AT_A_TIME = 1 << 18
NIBBLES = tuple(bytes((byte >> 4, byte & 15)) for byte in range(256))


class Bitmap(NamedTuple):
    """What the headers tell. The palette is (256, 3): red, green, blue."""

    size: tuple[int, int]
    is_top_down: bool
    bits: int
    coding: int
    masks: tuple[int, ...]
    palette: Levels
    pixels_at: int

    @property
    def has_runs(self) -> bool:
        return self.coding in (RUNS_OF_8, RUNS_OF_4)


def bitmap(data: bytes) -> Bitmap:
    """Raises UndecodableImage, or struct.error where the file ends within its headers."""
    told, length = struct.unpack_from("<II", data, 10)
    coding = colours = 0
    if length == CORE_HEADER:
        width, height, _, bits = struct.unpack_from("<4H", data, 18)
    else:
        width, height, _, bits = struct.unpack_from("<iiHH", data, 18)
        if length >= 40:
            coding, colours = struct.unpack_from("<I12xI", data, 30)
    if not (length in (CORE_HEADER, *WINDOWS_HEADERS) or length in OS2_HEADERS) or bits not in CODINGS.get(coding, ()):
        raise UndecodableImage("The BMP is of a kind that is not known.")
    if width <= 0 or height == 0:
        raise UndecodableImage("The BMP has no pixels.")
    start = FILE_HEADER_BYTES + length
    if length == 40 and coding in (BITFIELDS, ALPHA_BITFIELDS):
        start += 12 if coding == BITFIELDS else 16
    palette, end = _palette(data, bits, colours, start, told, 3 if length == CORE_HEADER else 4)
    has_alpha = coding == ALPHA_BITFIELDS or (coding == BITFIELDS and length >= 56)
    masks = _masks(data, bits, has_alpha) if coding in (BITFIELDS, ALPHA_BITFIELDS) else USUAL_MASKS.get(bits, ())
    return Bitmap((width, abs(height)), height < 0, bits, coding, masks, palette, told if told > start else end)


def picture(header: Bitmap, data: bytes) -> Image.Image:
    """Mode L, RGB or RGBA. Raises UndecodableImage where the file ends before its last pixel."""
    if header.has_runs:
        return _coloured(_run(header, data), header)
    rows = _rows(header, data)
    if header.bits <= 8:
        return _coloured(_indexes(rows, header), header)
    width, height = header.size
    if header.bits == 24:
        pixels = rows[:, : 3 * width].reshape(height, width, 3)[..., ::-1]
        return Image.fromarray(np.ascontiguousarray(_upright(pixels, header)))
    return Image.fromarray(_upright(_unmasked(rows, header), header))


def _palette(data: bytes, bits: int, colours: int, start: int, told: int, entry_bytes: int) -> tuple[Levels, int]:
    """Black where it has no colour; and where it ends, by the number of its colours or by where the pixels start."""
    palette = np.zeros((256, 3), np.uint8)
    if bits > 8:
        return palette, start
    colours = min(colours or 1 << bits, 1 << bits)
    if told > start:
        colours = min(colours, (told - start) // entry_bytes)
    entries = data[start : start + colours * entry_bytes]
    if len(entries) < colours * entry_bytes:
        raise UndecodableImage("The BMP is truncated.")
    palette[:colours] = np.frombuffer(entries, np.uint8).reshape(colours, entry_bytes)[:, 2::-1]
    return palette, start + len(entries)


def _masks(data: bytes, bits: int, has_alpha: bool) -> tuple[int, ...]:
    """Raises UndecodableImage where the bits of a colour do not lie together."""
    masks: tuple[int, ...] = struct.unpack_from("<4I" if has_alpha else "<3I", data, MASKS_AT)
    masks += (0,) * (4 - len(masks))
    if not any(masks[:3]):
        masks = (*USUAL_MASKS.get(bits, ())[:3], masks[3])
    for mask in masks:
        steps = mask // _lowest(mask)
        if steps & (steps + 1):
            raise UndecodableImage("The BMP has masks that are none.")
    return masks


def _lowest(mask: int) -> int:
    """The lowest bit of a mask, 1 if it has none."""
    return mask & -mask or 1


def _rows(header: Bitmap, data: bytes) -> Levels:
    """As they are stored: (height, bytes of a row). Of the last row its padding may be missing."""
    width, height = header.size
    stride, used = (width * header.bits + 31) // 32 * 4, (width * header.bits + 7) // 8
    size = stride * height
    if len(data) < header.pixels_at + size - stride + used:
        raise UndecodableImage("The BMP is truncated.")
    stored = data[header.pixels_at : header.pixels_at + size].ljust(size, b"\0")
    return np.frombuffer(stored, np.uint8).reshape(height, stride)


def _upright(rows: Levels, header: Bitmap) -> Levels:
    return rows if header.is_top_down else rows[::-1]


def _indexes(rows: Levels, header: Bitmap) -> Levels:
    """Of palette colours: (height, width)."""
    width, height = header.size
    if header.bits == 1:
        return np.unpackbits(rows, axis=1, count=width)
    if header.bits < 8:
        shifts = np.arange(8 - header.bits, -1, -header.bits, dtype=np.uint8)
        apart: Levels = (rows[..., None] >> shifts) & np.uint8((1 << header.bits) - 1)
        rows = apart.reshape(height, -1)
    return rows[:, :width]


def _coloured(indexes: Levels, header: Bitmap) -> Image.Image:
    """Of mode L where all the colours are grey."""
    stored = _upright(indexes, header).tobytes()
    red, green, blue = header.palette.T
    if np.array_equal(red, green) and np.array_equal(red, blue):
        return Image.frombytes("L", header.size, stored.translate(red.tobytes()))
    image = Image.frombytes("P", header.size, stored)
    image.putpalette(header.palette.tobytes())
    return image.convert("RGB")


def _unmasked(rows: Levels, header: Bitmap) -> Levels:
    """(height, width, 3), or 4 where alpha is more than a promise: many writers leave it at 0 for opaque pictures."""
    width, height = header.size
    words = rows.view("<u2" if header.bits == 16 else "<u4")[:, :width]
    masks = header.masks if header.masks[3] else header.masks[:3]
    pixels = np.empty((height, width, len(masks)), np.uint8)
    some = max(1, PIXELS_AT_A_TIME // width)
    for top in range(0, height, some):
        for channel, mask in enumerate(masks):
            pixels[top : top + some, :, channel] = _channel(words[top : top + some], mask)
    return pixels if len(masks) == 3 or pixels[..., 3].any() else np.ascontiguousarray(pixels[..., :3])


def _channel(words: npt.NDArray[np.unsignedinteger], mask: int) -> npt.NDArray[np.uint64]:
    """0–255, rounded down, as Pillow does with 5 and 6 bits."""
    lowest = _lowest(mask)
    return (
        (words.astype(np.uint64) & np.uint64(mask))
        // np.uint64(lowest)
        * np.uint64(255)
        // np.uint64(mask // lowest or 1)
    )


def _run(header: Bitmap, data: bytes) -> Levels:
    """Indexes of palette colours, 0 where the codes leave a gap or end early. Raises UndecodableImage."""
    width, height = header.size
    codes, is_of_4 = data[header.pixels_at :], header.coding == RUNS_OF_4
    field = bytearray(width * height)
    at, start, column, last = 0, 0, 0, width * (height - 1)
    # Each code draws or goes on to a row; hostile ones do neither, or draw beyond the row.
    for _ in range(width * height + 2 * height):
        if start > last:
            break
        if at + 2 > len(codes):
            raise UndecodableImage("The BMP is truncated.")
        count, code = codes[at], codes[at + 1]
        at += 2
        if count:
            drawn = (NIBBLES[code] * 128)[:count] if is_of_4 else codes[at - 1 : at] * count
        elif code == END_OF_ROW:
            start, column = start + width, 0
            continue
        elif code == END_OF_PICTURE:
            break
        elif code == MOVE:
            right, up = codes[at : at + 2].ljust(2, b"\0")
            start, column, at = start + width * up, column + right, at + 2
            continue
        else:
            # So many pixels as they are, to an even number of bytes.
            drawn, count = _as_they_are(codes, at, code, is_of_4), code
            at += ((code + 1 >> 1 if is_of_4 else code) + 1) & ~1
        if column + count > width:
            drawn = drawn[: max(0, width - column)]
        field[start + column : start + column + len(drawn)] = drawn
        column += count
        if column > 2 * width + 255:
            raise UndecodableImage("The BMP draws beyond its rows.")
    else:
        raise UndecodableImage("The BMP has codes that draw nothing.")
    return np.frombuffer(field, np.uint8).reshape(height, width)


def _as_they_are(codes: bytes, at: int, count: int, is_of_4: bool) -> bytes:
    if not is_of_4:
        return codes[at : at + count]
    return b"".join([NIBBLES[byte] for byte in codes[at : at + (count + 1 >> 1)]])[:count]
