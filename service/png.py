"""A PNG's chunks: those that make its picture, put so that Pillow makes of them what libpng and browsers do.

What is critical must be sound and in its place; anything else that is not is left out.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import NamedTuple

from service.errors import UndecodableImage

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Walking through millions of chunks takes seconds.
MAX_CHUNKS = 20_000
# Of a chunk: length and kind. Behind its content stands the checksum of kind and content.
HEAD, CHECKSUM = struct.Struct(">I4s"), struct.Struct(">I")
# Width, height, bits of a sample, colour type, and how it is compressed, filtered and interlaced.
HEADER = struct.Struct(">IIBBBBB")
GREY, COLOUR, PALETTE = 0, 2, 3
CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
# Of what a decoder need not know.
USED = (b"tRNS", b"eXIf")
MAX_PALETTE_BYTES = 3 * 256
# Of grey of few bits: what one step of it is of 255.
STEPS = {2: 85, 4: 17}


class Chunk(NamedTuple):
    """Its kind, its content, and all of it, from its length to its checksum."""

    kind: bytes
    content: memoryview
    whole: memoryview

    @property
    def is_critical(self) -> bool:
        return self.kind[0] < ord("a")

    @property
    def is_sound(self) -> bool:
        return CHECKSUM.pack(zlib.crc32(self.whole[4:-4])) == self.whole[-4:]


def essential(data: bytes) -> bytes:
    """From a file that starts as PNGs do, a PNG of no more than header, palette, transparency, EXIF and pixels.

    Comments and colour profiles, which may be bombs, are left out. Raises UndecodableImage; also where the end mark
    is missing, though Pillow would do without.
    """
    header, *rest = chunks = list(_chunks(data))
    for chunk in chunks:
        _check_critical(chunk)
    if header.kind != b"IHDR" or len(header.content) != HEADER.size or any(chunk.kind == b"IHDR" for chunk in rest):
        raise UndecodableImage("A PNG starts with its header, and has one.")
    *_, compression, filtering, interlacing = HEADER.unpack(header.content)
    if compression or filtering or interlacing > 1:
        raise UndecodableImage("The PNG is of a kind that is not known.")
    before = list(takewhile(lambda chunk: chunk.kind != b"IDAT", rest))
    # Pixels behind another chunk are no part of the picture.
    stream = takewhile(lambda chunk: chunk.kind == b"IDAT", rest[len(before) :])
    pieces = (*_colours(header, before), *(chunk.whole for chunk in stream), *_orientation(rest))
    return b"".join((SIGNATURE, header.whole, *pieces, chunks[-1].whole))


def _chunks(data: bytes) -> Iterator[Chunk]:
    """Up to the end mark; of what counts for nothing, only what comes first or interrupts the pixels."""
    view, position, counts = memoryview(data), len(SIGNATURE), True
    for _ in range(MAX_CHUNKS):
        if position + HEAD.size > len(data):
            raise UndecodableImage("The PNG is truncated.")
        length, kind = HEAD.unpack_from(data, position)
        start, position = position, position + HEAD.size + length + CHECKSUM.size
        if position > len(data):
            raise UndecodableImage("The PNG is truncated.")
        if counts or kind in USED or kind[0] < ord("a"):
            whole = view[start:position]
            yield Chunk(kind, whole[HEAD.size : -CHECKSUM.size], whole)
            if kind == b"IEND":
                return
            counts = kind == b"IDAT"
    raise UndecodableImage(f"The PNG has more than {MAX_CHUNKS:,} chunks.")


def _check_critical(chunk: Chunk) -> None:
    if chunk.is_critical:
        if chunk.kind not in CRITICAL:
            raise UndecodableImage("The PNG needs a chunk that is not known here.")
        if chunk.kind in (b"IHDR", b"IDAT") and not chunk.is_sound:
            raise UndecodableImage("The PNG is damaged: a checksum is wrong.")


def _colours(header: Chunk, before: Sequence[Chunk]) -> Iterator[bytes | memoryview]:
    """The palette that a picture has, and what of it is transparent, from the chunks before the pixels."""
    _, _, bits, colour, *_ = HEADER.unpack(header.content)
    entries = 0
    if colour == PALETTE:
        palette = _first(before, b"PLTE")
        size = len(palette.content) if palette else 0
        if palette is None or not palette.is_sound or size % 3 or not 0 < size <= MAX_PALETTE_BYTES:
            raise UndecodableImage("The PNG has no sound palette.")
        yield palette.whole
        entries = size // 3
    clear = _first(before, b"tRNS")
    if clear is not None and clear.is_sound:
        content = _transparency(bytes(clear.content), colour, bits, entries)
        if content:
            kind = b"tRNS" + content
            yield b"".join((CHECKSUM.pack(len(content)), kind, CHECKSUM.pack(zlib.crc32(kind))))


def _transparency(content: bytes, colour: int, bits: int, entries: int) -> bytes:
    """As Pillow compares it with the pixels that it made, nothing where it does not fit the picture.

    Of 16-bit colour Pillow has the high bytes only.
    """
    if colour == PALETTE:
        return content if len(content) <= entries else b""
    if (colour, len(content)) not in ((GREY, 2), (COLOUR, 6)):
        return b""
    levels = struct.unpack(f">{len(content) // 2}H", content)
    if bits == 16 and colour == COLOUR:
        levels = tuple(level >> 8 for level in levels)
    elif bits < 16:
        levels = tuple((level & (1 << bits) - 1) * STEPS.get(bits, 1) for level in levels)
    return struct.pack(f">{len(levels)}H", *levels)


def _orientation(chunks: Sequence[Chunk]) -> Iterator[memoryview]:
    exif = _first(chunks, b"eXIf")
    if exif is not None and exif.is_sound:
        yield exif.whole


def _first(chunks: Sequence[Chunk], kind: bytes) -> Chunk | None:
    return next((chunk for chunk in chunks if chunk.kind == kind), None)
