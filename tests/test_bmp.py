import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.errors import UndecodableImage
from tests.test_images import DIGIT, PHOTO, encoded, few_colours, photograph, picture, pixels

RAW, RUNS_OF_8, RUNS_OF_4, BITFIELDS, ALPHA_BITFIELDS = 0, 1, 2, 3, 6
PALETTE = np.random.default_rng(0).integers(0, 256, (256, 3)).astype(np.uint8)


def file(
    size: tuple[int, int],
    bits: int,
    stored: bytes,
    coding: int = RAW,
    header: int = 40,
    masks: tuple[int, ...] = (),
    palette: bytes = b"",
    colours: int = 0,
    gap: bytes = b"",
) -> bytes:
    """A BMP of parts of the test's choice."""
    if header == 12:
        second = struct.pack("<IHHHH", 12, *size, 1, bits)
    else:
        usual = struct.pack("<IiiHHIIiiII", header, *size, 1, bits, coding, 0, 0, 0, colours, 0)
        second = (usual + struct.pack(f"<{len(masks)}I", *masks)).ljust(header, b"\0")
        second = second[: header if header < 40 else None]
    start = 14 + len(second) + len(palette) + len(gap)
    return b"BM" + struct.pack("<IHHI", start + len(stored), 0, 0, start) + second + palette + gap + stored


def rows(values: np.ndarray[Any, Any], bits: int, upside: int = -1) -> bytes:
    """(height, width) → rows from the lowest, each filled up to four bytes."""
    if bits >= 16:
        packed = values.astype(f"<u{bits // 8}").view(np.uint8).reshape(len(values), -1)
    else:
        flat = np.unpackbits(values.astype(np.uint8)[..., None], axis=2)[..., 8 - bits :]
        packed = np.packbits(flat.reshape(len(values), -1), axis=1)
    filled = np.pad(packed, ((0, 0), (0, -packed.shape[1] % 4)))
    return filled[::upside].tobytes()


def colours(entry: int, count: int) -> bytes:
    return b"".join(bytes(colour[::-1]).ljust(entry, b"\0") for colour in PALETTE[:count])


def values(bits: int, height: int = 7, width: int = 13) -> np.ndarray[Any, Any]:
    return np.random.default_rng(bits).integers(0, 2**bits, (height, width))


def same(image: Image.Image, expected: np.ndarray[Any, Any]) -> bool:
    return np.array_equal(np.asarray(image), expected)


@pytest.mark.parametrize("header", [12, 16, 36, 40, 52, 56, 60, 64, 108, 124])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palettes(bits: int, header: int) -> None:
    """Indexes of each width, behind each header that Windows and OS/2 wrote, give their colours."""
    indexes, entry = values(bits), 3 if header == 12 else 4
    palette = colours(entry, 2**bits)
    for gap in (b"", b"gap."):
        data = file((13, 7), bits, rows(indexes, bits), header=header, palette=palette, gap=gap)
        assert same(picture(data), PALETTE[indexes])
    # Where the pixels start may be told wrongly.
    for told in (0, 14 + header):
        wrong = bytearray(file((13, 7), bits, rows(indexes, bits), header=header, palette=palette))
        wrong[10:14] = struct.pack("<I", told)
        assert same(picture(bytes(wrong)), PALETTE[indexes])


@pytest.mark.parametrize("count", [3, 256, 300, 10**9])
def test_palettes_of_other_sizes(count: int) -> None:
    """A palette may be shorter than its indexes allow, which are black then, or said to be longer."""
    some = min(count, 300)
    palette = colours(4, some).ljust(4 * some, b"x")
    indexes = values(8)
    expected = np.concatenate((PALETTE[:count], np.zeros((256, 3), np.uint8)))[indexes]
    data = file((13, 7), 8, rows(indexes, 8), palette=palette, colours=count)
    assert same(picture(data), expected)


def test_top_down() -> None:
    """A negative height means that the first row comes first."""
    indexes = values(8)
    data = file((13, -7), 8, rows(indexes, 8, 1), palette=colours(4, 256))
    assert same(picture(data), PALETTE[indexes])


MASKS = {
    "555": (16, (0x7C00, 0x3E0, 0x1F)),
    "565": (16, (0xF800, 0x7E0, 0x1F)),
    "231": (16, (0x30, 0x0E, 0x01)),
    "4444": (16, (0xF00, 0xF0, 0xF, 0xF000)),
    "8888": (32, (0xFF0000, 0xFF00, 0xFF, 0xFF000000)),
    "reversed": (32, (0xFF, 0xFF00, 0xFF0000, 0xFF000000)),
    "10 bits": (32, (0x3FF00000, 0xFFC00, 0x3FF)),
    "11 bits": (32, (0xFFE00000, 0x1FFC00, 0x3FF)),
    "no green": (32, (0xFF0000, 0, 0xFF)),
    "32 bits of red": (32, (0xFFFFFFFF, 0, 0)),
}


def apart(words: np.ndarray[Any, Any], mask: int) -> np.ndarray[Any, Any]:
    if not mask:
        return np.zeros_like(words)
    lowest = mask & -mask
    return ((words & mask) // lowest * 255) // (mask // lowest)


@pytest.mark.parametrize("name", MASKS)
def test_masks(name: str) -> None:
    """Any bits may be a colour's, told behind the oldest header or within the newer ones."""
    bits, masks = MASKS[name]
    words = values(bits)
    expected = np.dstack([apart(words, mask) for mask in masks])
    stored = rows(words, bits)
    ways = [(BITFIELDS, 124), (BITFIELDS, 108), (BITFIELDS, 56)]
    ways += [(ALPHA_BITFIELDS, 40)] if len(masks) == 4 else [(BITFIELDS, 40), (BITFIELDS, 52)]
    for coding, header in ways:
        assert same(picture(file((13, 7), bits, stored, coding, header, masks)), expected)


@pytest.mark.parametrize("bits", [16, 32])
def test_without_masks(bits: int) -> None:
    """16 bits are five a colour, 32 are eight, as if the masks said so, and a fourth byte is passed over."""
    words, masks = values(bits), {16: MASKS["555"][1], 32: (0xFF0000, 0xFF00, 0xFF)}[bits]
    plain = picture(file((13, 7), bits, rows(words, bits)))
    assert plain.mode == "RGB"
    assert plain.tobytes() == picture(file((13, 7), bits, rows(words, bits), BITFIELDS, 40, masks)).tobytes()


def test_alpha_that_is_nowhere() -> None:
    """Where alpha is promised and 0 throughout, the picture is opaque, as browsers show it."""
    words = values(32) & 0xFFFFFF
    data = file((13, 7), 32, rows(words, 32), BITFIELDS, 124, MASKS["8888"][1])
    assert picture(data).mode == "RGB"


@pytest.mark.parametrize("masks", [(0x5, 0x2, 0x8), (0xF0F, 0xF0, 0xF000)])
def test_masks_with_holes(masks: tuple[int, ...]) -> None:
    """Bits of a colour lie together."""
    with pytest.raises(UndecodableImage):
        picture(file((13, 7), 16, rows(values(16), 16), BITFIELDS, 40, masks))


@pytest.mark.parametrize("spec", [DIGIT, PHOTO], ids=["digit", "photo"])
def test_one_picture_in_every_way(spec: Any) -> None:
    """24 and 32 bits, a palette and run lengths give the same bytes, which are those of a PNG."""
    image = few_colours()
    rgb, size = np.asarray(image).astype(int), image.size
    words = rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]
    levels, indexes = np.unique(words, return_inverse=True)
    indexes = indexes.reshape(words.shape)
    palette = b"".join(struct.pack("<I", level) for level in levels)
    expected = pixels(encoded(image, "PNG"), spec)
    for data in (
        encoded(image, "BMP"),
        file(size, 32, rows(words, 32)),
        file((size[0], -size[1]), 32, rows(words, 32, 1)),
        file(size, 32, rows(words | 0xFF000000, 32), BITFIELDS, 124, MASKS["8888"][1]),
        file(size, 8, rows(indexes, 8), palette=palette, colours=len(levels)),
        file(size, 8, runs(indexes, 8), RUNS_OF_8, palette=palette, colours=len(levels)),
    ):
        assert np.array_equal(pixels(data, spec), expected)


def runs(indexes: np.ndarray[Any, Any], bits: int) -> bytes:
    """Run lengths of a picture, from its lowest row."""
    codes = bytearray()
    for row in indexes[::-1]:
        starts = [0, *(np.flatnonzero(np.diff(row)) + 1), len(row)]
        for start, end in pairwise(starts):
            index = int(row[start])
            for at in range(start, end, 255):
                codes += bytes((min(255, end - at), index if bits == 8 else index << 4 | index))
        codes += b"\0\0"
    return bytes(codes + b"\0\1")


def drawings() -> Iterator[Any]:
    yield pytest.param(RUNS_OF_8, b"\2\7\1\x08\0\0\3\x09\0\1", [[9, 9, 9], [7, 7, 8]], id="runs")
    yield pytest.param(RUNS_OF_4, b"\3\x78\0\0\2\x95\0\1", [[9, 5, 0], [7, 8, 7]], id="runs of 4 bits")
    yield pytest.param(RUNS_OF_8, b"\0\3\7\x08\x09\0\0\0\3\1\0\1", [[1, 1, 1], [7, 8, 9]], id="as they are")
    yield pytest.param(RUNS_OF_4, b"\0\3\x78\x90\0\0\3\x11\0\1", [[1, 1, 1], [7, 8, 9]], id="as they are, 4 bits")
    yield pytest.param(RUNS_OF_8, b"\1\5\0\2\1\1\1\6\0\1", [[0, 0, 6], [5, 0, 0]], id="move")
    yield pytest.param(RUNS_OF_8, b"\1\5\0\1", [[0, 0, 0], [5, 0, 0]], id="ends early")
    yield pytest.param(RUNS_OF_8, b"\x09\5\0\0\3\6\0\1", [[6, 6, 6], [5, 5, 5]], id="beyond the row")
    yield pytest.param(RUNS_OF_8, b"\3\5\0\0\3\6\0\0\3\7", [[6, 6, 6], [5, 5, 5]], id="no end")


@pytest.mark.parametrize(("coding", "codes", "expected"), tuple(drawings()))
def test_run_lengths(coding: int, codes: bytes, expected: list[list[int]]) -> None:
    """Each code draws what it should; gaps have the first colour."""
    bits = 8 if coding == RUNS_OF_8 else 4
    data = file((3, 2), bits, codes, coding, palette=colours(4, 2**bits))
    assert same(picture(data), PALETTE[np.array(expected)])


@pytest.mark.parametrize("codes", [b"", b"\3", b"\3\5\0\0\1\5", b"\0\2\1", b"\0\2\0\0" * 99, b"\0\5\1\2"])
def test_run_lengths_that_make_no_picture(codes: bytes) -> None:
    """Cut short, or going nowhere for ever."""
    with pytest.raises(UndecodableImage):
        picture(file((3, 2), 8, codes, RUNS_OF_8, palette=colours(4, 256)))


@settings(max_examples=200, deadline=None)
@given(codes=st.binary(max_size=200), size=st.tuples(st.integers(1, 20), st.integers(1, 20)))
def test_any_run_lengths(codes: bytes, size: tuple[int, int]) -> None:
    """Any codes give a picture of that size or are refused."""
    for coding, bits in ((RUNS_OF_8, 8), (RUNS_OF_4, 4)):
        with suppress(UndecodableImage):
            assert picture(file(size, bits, codes, coding, palette=colours(4, 2**bits))).size == size


@pytest.mark.slow
@pytest.mark.parametrize(
    "codes",
    [
        (b"\1\7" * 1000 + b"\0\0") * 1000,
        b"\1\7" * 10**6,
        (b"\0\3\7\7\7\0" * 333 + b"\0\0") * 1000,
        b"\0\2\0\0" * 10**6,
        b"\0\2\1\0" * 10**6,
    ],
)
@pytest.mark.parametrize("coding", [RUNS_OF_8, RUNS_OF_4])
def test_the_most_run_lengths_take_less_than_a_second(codes: bytes, coding: int) -> None:
    """Of this thread's time, for a picture as large as is accepted."""
    bits = 8 if coding == RUNS_OF_8 else 4
    data = file((1000, 1000), bits, codes, coding, palette=colours(4, 2**bits))
    started = time.thread_time()
    with suppress(UndecodableImage):
        picture(data)
    assert time.thread_time() - started < 1


@pytest.mark.parametrize(
    ("size", "bits", "coding", "header"),
    [
        ((3, 0), 8, RAW, 40),
        ((0, 3), 8, RAW, 40),
        ((-3, 3), 8, RAW, 40),
        ((3, 3), 3, RAW, 40),
        ((3, 3), 64, RAW, 40),
        ((3, 3), 0, 4, 40),
        ((3, 3), 0, 5, 40),
        ((3, 3), 24, 4, 64),
        ((3, 3), 1, BITFIELDS, 64),
        ((3, 3), 4, RUNS_OF_8, 40),
        ((3, 3), 8, RAW, 66),
        ((3, 3), 8, RAW, 13),
    ],
)
def test_kinds_that_are_not_known(size: tuple[int, int], bits: int, coding: int, header: int) -> None:
    """No size, an odd number of bits, a coding of another number of bits, a JPEG or PNG inside, an unknown header."""
    with pytest.raises(UndecodableImage):
        picture(file(size, bits, bytes(999), coding, header, palette=colours(4, 256)))


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16, 24, 32])
def test_truncated(bits: int) -> None:
    """A file cut anywhere is refused, unless all it lacks is the padding of its last row."""
    image = photograph().crop((0, 0, 13, 7))
    whole = encoded(image, "BMP")
    if bits != 24:
        whole = file((13, 7), bits, rows(values(bits), bits), palette=colours(4, 2**bits) if bits <= 8 else b"")
    padding = -((13 * bits + 7) // 8) % 4
    expected = picture(whole).tobytes()
    for length in range(40, len(whole)):
        if length >= len(whole) - padding:
            assert picture(whole[:length]).tobytes() == expected
        else:
            with pytest.raises(UndecodableImage):
                picture(whole[:length])
