import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.errors import UndecodableImage
from service.png import MAX_CHUNKS, SIGNATURE, essential
from tests.test_images import DIGIT, PHOTO, chunk, digit, few_colours, photograph, picture, pixels

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
FORMS = [(0, bits) for bits in (1, 2, 4, 8, 16)] + [(3, bits) for bits in (1, 2, 4, 8)]
FORMS += [(colour, bits) for colour in (2, 4, 6) for bits in (8, 16)]
# Of each pass of Adam7: the first row and column, and how far it is to the next.
PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
GREYS = chunk(b"PLTE", bytes(level for level in range(256) for _ in range(3)))
TURNED = b"MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0"


def rows(samples: np.ndarray[Any, Any], bits: int, interlaced: bool = False) -> list[bytes]:
    """Samples (height, width, channels) → the rows of a PNG's stream, each with its filter."""
    if interlaced:
        parts = [samples[top::down, left::right] for top, left, down, right in PASSES]
        return [row for part in parts if part.size for row in rows(part, bits)]
    height = len(samples)
    if bits == 16:
        packed = samples.astype(">u2").view(np.uint8).reshape(height, -1)
    else:
        flat = samples.astype(np.uint8).reshape(height, -1, 1)
        packed = np.packbits(np.unpackbits(flat, axis=2)[:, :, 8 - bits :].reshape(height, -1), axis=1)
    return [b"\0" + row.tobytes() for row in packed]


def file(samples: np.ndarray[Any, Any], colour: int, bits: int, interlaced: bool = False, *before: bytes) -> bytes:
    return of_rows(samples.shape[:2], colour, bits, interlaced, rows(samples, bits, interlaced), *before)


def of_rows(
    shape: tuple[int, ...], colour: int, bits: int, interlaced: bool, content: list[bytes], *before: bytes
) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", shape[1], shape[0], bits, colour, 0, 0, interlaced))
    palette = (GREYS,) if colour == 3 and bits == 8 else ()
    if colour == 3 and bits < 8:
        palette = (chunk(b"PLTE", GREYS[8 : 8 + 3 * 2**bits]),)
    stream = chunk(b"IDAT", zlib.compress(b"".join(content)))
    return b"".join((SIGNATURE, header, *palette, *before, stream, chunk(b"IEND")))


def noise(height: int, width: int, colour: int, bits: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 2**bits, (height, width, CHANNELS[colour]))


def level(samples: np.ndarray[Any, Any], colour: int, bits: int) -> np.ndarray[Any, Any]:
    """What 8 bits a channel should be of samples; of a palette that is all grey, the index."""
    if colour == 3:
        return samples
    return samples >> 8 if bits == 16 else samples * (255 // (2**bits - 1))


@pytest.mark.parametrize("interlaced", [False, True], ids=["straight", "interlaced"])
@pytest.mark.parametrize(("colour", "bits"), FORMS)
def test_every_form(colour: int, bits: int, interlaced: bool) -> None:
    """Each of the 15 forms, interlaced and not, of sizes with and without all passes, gives its very samples."""
    for height, width in ((1, 1), (1, 2), (2, 1), (1, 9), (9, 1), (3, 5), (8, 8), (13, 21)):
        samples = noise(height, width, colour, bits)
        expected = level(samples, colour, bits)
        if CHANNELS[colour] in (1, 2):
            expected = np.concatenate((*[expected[..., :1]] * 3, expected[..., 1:]), axis=2)
        mode = "RGBA" if colour in (4, 6) else "RGB"
        assert same(picture(file(samples, colour, bits, interlaced)).convert(mode), expected)


def same(image: Image.Image, expected: np.ndarray[Any, Any]) -> bool:
    return np.array_equal(np.asarray(image), expected)


def mark_pictures() -> Iterator[Any]:
    """Of the greys that the reader uses as marks, too."""
    for colour, bits in FORMS:
        for grey in (0, 93, 94, 255):
            yield pytest.param(
                colour, bits, min(grey * (257 if bits == 16 else 1), 2**bits - 1), id=f"{colour}-{bits}-{grey}"
            )


@pytest.mark.parametrize(("colour", "bits", "sample"), tuple(mark_pictures()))
def test_rows_that_end_early(colour: int, bits: int, sample: int) -> None:
    """A stream of fewer rows than the header tells is refused, interlaced or not, whatever its picture shows."""
    samples = np.full((9, 11, CHANNELS[colour]), sample)
    for interlaced in (False, True):
        content = rows(samples, bits, interlaced)
        assert picture(of_rows((9, 11), colour, bits, interlaced, content)).size == (11, 9)
        assert picture(of_rows((9, 11), colour, bits, interlaced, [*content, *content])).size == (11, 9)
        for count in range(len(content)):
            for short in (content[:count], [*content[:count], content[count][:-1]]):
                with pytest.raises(UndecodableImage):
                    picture(of_rows((9, 11), colour, bits, interlaced, short))


def test_rows_of_an_animation_that_end_early() -> None:
    """So it is with the first picture of an animation."""
    samples = noise(9, 11, 6, 8)
    control = (
        chunk(b"acTL", struct.pack(">II", 2, 0)),
        chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 11, 9, 0, 0, 1, 1, 0, 0)),
    )
    assert picture(file(samples, 6, 8, False, *control)).size == (11, 9)
    with pytest.raises(UndecodableImage):
        picture(of_rows((9, 11), 6, 8, False, rows(samples, 8)[:-1], *control))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_rows_that_end_early_of_any_picture(data: st.DataObject) -> None:
    """Any size and form."""
    (colour, bits), interlaced = data.draw(st.sampled_from(FORMS)), data.draw(st.booleans())
    height, width = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
    content = rows(noise(height, width, colour, bits, data.draw(st.integers(0, 99))), bits, interlaced)
    picture(of_rows((height, width), colour, bits, interlaced, content))
    with pytest.raises(UndecodableImage):
        picture(
            of_rows((height, width), colour, bits, interlaced, content[: data.draw(st.integers(0, len(content) - 1))])
        )


@pytest.mark.slow
@pytest.mark.parametrize("spec", [DIGIT, PHOTO], ids=["digit", "photo"])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_forms_of_one_picture(spec: Any, data: st.DataObject) -> None:
    """8 and 16 bits, with and without alpha, interlaced or not, grey or colour: one picture gives the same bytes."""
    grey = noise(data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40)), 0, 8, data.draw(st.integers(0, 99)))
    rgb = np.random.default_rng(len(grey)).integers(0, 256, (*grey.shape[:2], 3))
    opaque = np.full_like(grey, 255)
    for plain, ways in (
        (file(grey, 0, 8), ((grey, 0), (np.dstack((grey, opaque)), 4), (np.dstack([grey] * 3), 2), (grey, 3))),
        (file(rgb, 2, 8), ((rgb, 2), (np.dstack((rgb, opaque)), 6))),
    ):
        expected = pixels(plain, spec)
        for samples, colour in ways:
            for interlaced in (False, True):
                assert np.array_equal(pixels(file(samples, colour, 8, interlaced), spec), expected)
                if colour != 3:
                    assert np.array_equal(pixels(file(samples * 257, colour, 16, interlaced), spec), expected)


@pytest.mark.parametrize("spec", [DIGIT, PHOTO], ids=["digit", "photo"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_transparent_grey(bits: int, spec: Any) -> None:
    """One grey that is transparent is as if all its pixels had no alpha, of however many bits it is."""
    samples = noise(20, 30, 0, bits)
    samples[::2] = clear = 2**bits - 1
    alpha = np.where(samples == clear, 0, 255)
    expected = pixels(file(np.dstack((level(samples, 0, bits), alpha)), 4, 8), spec)
    for interlaced in (False, True):
        data = file(samples, 0, bits, interlaced, chunk(b"tRNS", struct.pack(">H", clear)))
        assert np.array_equal(pixels(data, spec), expected)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_transparent_colour(bits: int) -> None:
    """The same of a colour."""
    clear = tuple(value * (257 if bits == 16 else 1) for value in (200, 5, 77))
    samples = noise(20, 30, 2, bits)
    samples[::2] = clear
    alpha = np.where((samples == clear).all(axis=2, keepdims=True), 0, 255)
    data = file(samples, 2, bits, False, chunk(b"tRNS", struct.pack(">3H", *clear)))
    assert same(picture(data), np.dstack((level(samples, 2, bits), alpha)))


def test_a_transparent_palette() -> None:
    """Each colour of a palette has its alpha, and those beyond are opaque."""
    samples = noise(20, 30, 3, 8)
    alpha = np.concatenate((np.arange(0, 100), np.full(156, 255)))[samples]
    image = np.asarray(picture(file(samples, 3, 8, False, chunk(b"tRNS", bytes(range(100))))))
    assert np.array_equal(image, np.dstack([samples] * 3 + [alpha]))


def damaged(whole: bytes) -> bytes:
    return whole[:-1] + bytes((whole[-1] ^ 1,))


@pytest.mark.parametrize(
    "extra",
    [
        damaged(chunk(b"tRNS", b"\0\5")),
        chunk(b"tRNS", b"\0"),
        chunk(b"tRNS", bytes(6)),
        damaged(chunk(b"eXIf", TURNED)),
        damaged(chunk(b"tEXt", b"a\0b")),
        damaged(chunk(b"gAMA", b"x")),
        chunk(b"gAMA", struct.pack(">I", 1)),
        chunk(b"sRGB", b"\0"),
        chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(99))),
        chunk(b"sBIT", b"\1"),
        chunk(b"bKGD", b"\0\xff"),
        chunk(b"PLTE", b"abcd"),
        damaged(chunk(b"PLTE", b"abc")),
        chunk(b"zzZz", b"private"),
    ],
    ids=lambda extra: repr(extra[4:12]),
)
def test_what_is_no_part_of_the_picture_changes_nothing(extra: bytes) -> None:
    """Damaged or odd chunks that a viewer may do without, gamma and profiles; before the pixels and after."""
    plain = file(np.asarray(digit())[..., None], 0, 8)
    assert picture(plain[:33] + extra + plain[33:]).tobytes() == digit().tobytes()
    assert picture(plain[:-12] + extra + plain[-12:]).tobytes() == digit().tobytes()


def test_orientation_before_and_after_the_pixels() -> None:
    """EXIF may stand behind them."""
    plain, turn = file(np.asarray(digit())[:, :20, None], 0, 8), chunk(b"eXIf", TURNED)
    upright = digit().crop((0, 0, 20, 28)).transpose(Image.Transpose.ROTATE_270)
    for data in (plain[:33] + turn + plain[33:], plain[:-12] + turn + plain[-12:]):
        assert picture(data).tobytes() == upright.tobytes()


def unsound() -> Iterator[Any]:
    plain = file(noise(5, 9, 0, 8), 0, 8)
    header, stream, end = plain[:33], plain[33:-12], plain[-12:]
    indexed = file(noise(5, 9, 3, 8), 3, 8)
    yield pytest.param(header[:-1] + b"\0" + stream + end, id="header's checksum")
    yield pytest.param(header + damaged(stream) + end, id="pixels' checksum")
    yield pytest.param(header + header[8:] + stream + end, id="two headers")
    yield pytest.param(SIGNATURE + chunk(b"tEXt", b"a\0b") + header[8:] + stream + end, id="header second")
    yield pytest.param(SIGNATURE + chunk(b"IHDR", header[16:29] + b"\0") + stream + end, id="long header")
    yield pytest.param(SIGNATURE + chunk(b"IHDR", header[16:28]) + stream + end, id="short header")
    yield pytest.param(header + end, id="no pixels")
    yield pytest.param(header + stream, id="no end")
    yield pytest.param(header + chunk(b"ABCD", b"x") + stream + end, id="unknown but needed")
    yield pytest.param(SIGNATURE + chunk(b"CgBI", bytes(4)) + header[8:] + stream + end, id="of iOS")
    yield pytest.param(indexed[:33] + indexed[33 + len(GREYS) :], id="no palette")
    yield pytest.param(indexed[:33] + damaged(GREYS) + indexed[33 + len(GREYS) :], id="palette's checksum")
    for size in (0, 4, 257 * 3):
        yield pytest.param(
            indexed[:33] + chunk(b"PLTE", bytes(size)) + indexed[33 + len(GREYS) :], id=f"palette of {size}"
        )
    half = chunk(b"IDAT", stream[8:20]) + chunk(b"tEXt", b"a\0b") + chunk(b"IDAT", stream[20:-4])
    yield pytest.param(header + half + end, id="pixels apart")
    for name, at, value in (
        ("bits", 24, 3),
        ("colours", 25, 1),
        ("compression", 26, 1),
        ("filter", 27, 1),
        ("passes", 28, 2),
    ):
        changed = bytearray(header[16:29])
        changed[at - 16] = value
        yield pytest.param(SIGNATURE + chunk(b"IHDR", bytes(changed)) + stream + end, id=name)
    yield pytest.param(header + chunk(b"tEXt") * MAX_CHUNKS + stream + end, id="chunks")


@pytest.mark.parametrize("data", tuple(unsound()))
def test_what_makes_no_picture(data: bytes) -> None:
    """Whatever is critical must be there, sound, known and in its place."""
    with pytest.raises(UndecodableImage):
        picture(data)


def test_pixels_in_chunks_of_a_byte() -> None:
    """However many chunks hold the pixels, empty ones among them."""
    plain = file(np.asarray(photograph()), 2, 8)
    stream = plain[41:-16]
    parts = b"".join(chunk(b"IDAT", stream[at : at + 1]) + chunk(b"IDAT") for at in range(len(stream)))
    assert picture(plain[:33] + parts + plain[-12:]).tobytes() == photograph().tobytes()


def test_essential_is_a_png() -> None:
    """What is kept is a PNG of the same picture."""
    buffer = BytesIO()
    few_colours().quantize(30).save(buffer, "PNG", icc_profile=b"x" * 99, exif=b"Exif\0\0" + TURNED)
    kept = essential(buffer.getvalue())
    assert b"iCCP" not in kept
    assert Image.open(BytesIO(kept)).convert("RGB").tobytes() == few_colours().tobytes()
