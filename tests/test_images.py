import hashlib
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageOps

from service.digits import _any_ink, _clean_ink
from service.errors import ImageTooLarge, UndecodableImage, UnsupportedImage
from service.images import FORMATS, InputSpec, Pixels, accepting, decode, of_array, read_header, to_pixels
from service.raster import Raster, image_of

FIXTURES = Path(__file__).parent / "fixtures"
MAX_PIXELS = 1_000_000
DIGIT = InputSpec("digit", 32, 32, (0.1,) * 3, (0.275,) * 3)
PHOTO = InputSpec("photo", 32, 32, (0.5,) * 3, (0.25,) * 3)
KINDS = pytest.mark.parametrize("spec", [DIGIT, PHOTO], ids=["digit", "photo"])
EXIF_ORIENTATION = 0x0112
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def picture(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    return image_of(decode(read_header(data, max_pixels)))


def pixels(data: bytes, spec: InputSpec) -> Pixels:
    return to_pixels(decode(read_header(data, MAX_PIXELS)), spec)


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I4s", len(data), kind) + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *extra: bytes) -> bytes:
    """A black grey-level PNG of up to a row's worth of data, with chunks of the test's choice before it."""
    rows = zlib.compress(bytes((width + 1) * min(height, 1000)))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"".join((PNG_SIGNATURE, chunk(b"IHDR", header), *extra, chunk(b"IDAT", rows), chunk(b"IEND")))


def bmp(width: int, height: int, bits: int, compression: int, rest: bytes) -> bytes:
    palette = bytes(level for grey in range(256) for level in (grey, 255 - grey, 0, 0)) if bits == 8 else b""
    size = 54 + len(palette)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", size + len(rest), 0, 0, size) + header + palette + rest


def webp_header(width: int, height: int) -> bytes:
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + canvas


def gif_header(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0, 0, 0)


def digit(index: int = 0) -> Image.Image:
    """28 × 28 grey, light on black."""
    return Image.open(sorted((FIXTURES / "digits").glob("*.png"))[index]).convert("L")


def photograph(index: int = 0) -> Image.Image:
    """32 × 32 RGB."""
    return Image.open(sorted((FIXTURES / "cifar10").glob("*.png"))[index]).convert("RGB")


def few_colours() -> Image.Image:
    """RGB of 30 colours, so that a GIF holds it exactly."""
    array = np.add.outer(np.arange(40) // 8, np.arange(48) // 8)
    return Image.fromarray(np.stack((array * 20, 250 - array * 10, array * 3), -1).astype(np.uint8))


def seven(side: int = 280, stroke: int = 20, paper: int = 255, ink: int = 0) -> Image.Image:
    drawing = Image.new("L", (side, side), paper)
    line = [(side * x // 100, side * y // 100) for x, y in ((30, 25), (70, 25), (45, 80))]
    ImageDraw.Draw(drawing).line(line, fill=ink, width=stroke, joint="curve")
    return drawing


def likeness(one: Pixels, other: Pixels) -> float:
    """Correlation of two digit fields, 1 if they are equal but for a pixel's shift."""
    shifted = (np.roll(one, shift, axis=(0, 1)) for shift in product((-1, 0, 1), repeat=2))
    return max(float(np.corrcoef(field.ravel(), other.ravel())[0, 1]) for field in shifted)


@pytest.mark.parametrize(
    ("folder", "spec", "digest"),
    [
        ("digits", DIGIT, "2cf1dbae5c803ca869b47a9048883421c70651966779b9229f7fb912307524bc"),
        ("cifar10", PHOTO, "49032c314487d54439c82427296572ceb26ce01aa3a1522ff66d1c6368cfa154"),
    ],
    ids=["digit", "photo"],
)
def test_pixels_are_those_the_networks_were_trained_on(folder: str, spec: InputSpec, digest: str) -> None:
    """The 64 fixtures of each data set give the very bytes they gave when the networks were trained."""
    files = sorted((FIXTURES / folder).glob("*.png"))
    fed = b"".join(pixels(file.read_bytes(), spec).tobytes() for file in files)
    assert len(files) == 64
    assert hashlib.sha256(fed).hexdigest() == digest


@KINDS
def test_shape_and_type_are_the_networks(spec: InputSpec) -> None:
    """Whatever the picture's shape, (height, width, 3) uint8 comes out."""
    for size in ((1, 1), (2, 3), (28, 28), (300, 200)):
        fed = to_pixels(Image.new("L", size, 90), spec)
        assert fed.shape == (32, 32, 3)
        assert fed.dtype == np.uint8


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [b"", b"BM", b"\x89PNG", b"RIFF", b"GIF"],
    ids=["empty", "BMP", "PNG", "WebP", "GIF"],
)
def test_too_short_to_tell(data: bytes) -> None:
    """A file too short to be recognised is refused like one that is no image, an empty one as undecodable."""
    with pytest.raises(UnsupportedImage if data else UndecodableImage):
        read_header(data, MAX_PIXELS)


@pytest.mark.parametrize(
    "data",
    [
        b"%PDF-1.7 ...........................",
        b"BMW builds cars, among them the i3.....",
        b"RIFF\x24\x00\x00\x00WAVEfmt ..............",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"BLP1" + bytes(280),
        b"II*\0" + bytes(100),
        b"PK\x03\x04" + bytes(100),
    ],
    ids=["PDF", "text", "WAV", "SVG", "BLP", "TIFF", "zip"],
)
def test_other_files_are_unsupported(data: bytes) -> None:
    """What is no JPEG, PNG, GIF, WebP or BMP is 415, though Pillow might read it."""
    with pytest.raises(UnsupportedImage, match="send JPEG, PNG, GIF, WebP and BMP"):
        read_header(data, MAX_PIXELS)


@pytest.mark.parametrize(
    "data",
    [
        png(20_000, 20_000),
        webp_header(16_000, 16_000),
        gif_header(65_535, 65_535) + b"," + bytes(4) + struct.pack("<HHBB", 1, 1, 0, 8),
        gif_header(1, 1) + b"," + bytes(4) + struct.pack("<HHBB", 60_000, 1_000, 0, 8),
        bmp(4, -(2**31), 24, 0, bytes(48)),
        bmp(2**31 - 1, 2**31 - 1, 24, 0, bytes(48)),
        bmp(1001, 1000, 8, 1, b""),
        encoded(Image.new("L", (1001, 1000)), "JPEG"),
    ],
    ids=["PNG", "WebP", "GIF screen", "GIF frame", "BMP up", "BMP down", "BMP RLE", "JPEG"],
)
def test_too_many_pixels(data: bytes) -> None:
    """More pixels than accepted are refused by the header alone."""
    with pytest.raises(ImageTooLarge, match="at most 1,000,000 are accepted"):
        read_header(data, MAX_PIXELS)


def test_run_lengths_have_their_own_limit() -> None:
    """A run-length BMP is decoded slowly, so it is refused at a million pixels however many others may have."""
    with pytest.raises(ImageTooLarge):
        read_header(bmp(1001, 1000, 8, 1, b""), 25_000_000)


@pytest.mark.parametrize("size", [(1, 1_000_001), (1_000_001, 1)])
def test_a_side_that_is_too_long(size: tuple[int, int]) -> None:
    """Rows cost however short they are, so a side is limited, too; a million is still read."""
    with pytest.raises(ImageTooLarge, match="at most 1,000,000 are accepted in a row"):
        read_header(png(*size), 25_000_000)
    longest = Image.new("L", (min(size[0], 1_000_000), min(size[1], 1_000_000)))
    assert picture(encoded(longest, "PNG"), 25_000_000).size == longest.size


def test_as_many_pixels_as_accepted() -> None:
    """The limit itself is accepted."""
    assert picture(png(28, 28), 28 * 28).size == (28, 28)
    with pytest.raises(ImageTooLarge):
        picture(png(28, 28), 28 * 28 - 1)


def test_no_warning_of_pillows_own_limit() -> None:
    """Where more is accepted than Pillow thinks wise, it does not say so for each upload."""
    assert read_header(png(10_000, 9_000), 10**9).size == (10_000, 9_000)


def whole_files() -> Iterator[Any]:
    small = photograph().resize((9, 7))
    yield pytest.param(encoded(small, "PNG"), 0, id="PNG")
    yield pytest.param(encoded(small.quantize(8), "PNG"), 0, id="PNG palette")
    yield pytest.param(encoded(small, "BMP"), 1, id="BMP")
    yield pytest.param(encoded(small, "WEBP", lossless=True), 0, id="WebP lossless")
    yield pytest.param(encoded(small, "WEBP", quality=50), 0, id="WebP")
    yield pytest.param(encoded(small, "JPEG", progressive=True), 0, id="JPEG progressive")
    yield pytest.param(encoded(small, "JPEG"), 0, id="JPEG baseline")
    yield pytest.param(encoded(small, "GIF"), 2, id="GIF")


@pytest.mark.parametrize(("data", "end_mark"), tuple(whole_files()))
def test_truncated_files(data: bytes, end_mark: int) -> None:
    """A file cut anywhere is refused, unless all it lacks is a BMP's last padding or a GIF's end marks."""
    whole = picture(data)
    for length in range(len(data)):
        try:
            cut = picture(data[:length])
        except (UndecodableImage, UnsupportedImage):
            continue
        assert length >= len(data) - end_mark
        assert cut.tobytes() == whole.tobytes()


def hostile_files() -> Iterator[Any]:
    bomb = b"a\0\0" + zlib.compress(bytes(1 << 20))
    jpeg = encoded(seven(40), "JPEG")
    frame_header = jpeg.index(b"\xff\xc0")
    yield pytest.param(png(28, 28, *[chunk(b"zTXt", bomb)] * 500), True, id="text bombs")
    yield pytest.param(png(28, 28, *[chunk(b"iCCP", bomb)] * 500), True, id="colour profile bombs")
    yield pytest.param(png(28, 28, chunk(b"iCCP", b"\xff" * 40)), True, id="broken colour profile")
    yield pytest.param(png(28, 28, chunk(b"acTL", bytes(8)) * 2), True, id="broken animation")
    yield pytest.param(encoded(seven(28), "PNG", exif=b"Exif\0\0MM\0*" + b"\xff" * 40), True, id="broken EXIF in PNG")
    yield pytest.param(encoded(seven(28), "JPEG", exif=b"Exif\0\0II*\0" + b"\xff" * 40), True, id="broken EXIF in JPEG")
    yield pytest.param(encoded(seven(28), "JPEG", icc_profile=b"\xff" * 999), True, id="broken profile in JPEG")
    yield pytest.param(bmp(4, -4, 24, 0, bytes(48)), True, id="BMP upside down")
    yield pytest.param(bmp(4, 2, 8, 1, b"\x04\x07\0\0\x04\x09\0\1"), True, id="BMP RLE")
    yield pytest.param(png(0, 5), False, id="PNG without width")
    yield pytest.param(bmp(5, 0, 24, 0, bytes(48)), False, id="BMP without height")
    yield pytest.param(jpeg[: frame_header + 5] + bytes(4) + jpeg[frame_header + 9 :], False, id="JPEG without size")
    yield pytest.param(gif_header(5, 5) + b"!\xfe" + b"\x01a" * 1000, False, id="GIF of comments")
    yield pytest.param(webp_header(5, 5), False, id="WebP without picture")


@pytest.mark.parametrize(("data", "sound"), tuple(hostile_files()))
def test_hostile_files(data: bytes, sound: bool) -> None:
    """What does not touch the pixels is ignored without a warning; what does is undecodable."""
    if sound:
        assert pixels(data, DIGIT).shape == pixels(data, PHOTO).shape == (32, 32, 3)
    else:
        with pytest.raises(UndecodableImage):
            picture(data)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}, {"optimize": True}], ids=str
)
def test_a_jpeg_whose_data_do_not_fill_its_size(mode: str, options: dict[str, Any]) -> None:
    """It would be filled up with grey, so it is refused; a picture that really is grey is not."""
    image = photograph().resize((40, 40)).convert(mode)
    grey: Any = {"L": 128, "RGB": (128, 128, 128), "CMYK": (128, 128, 128, 128)}[mode]
    for honest in (
        image,
        Image.new(mode, (40, 40), grey),
        ImageOps.pad(image.convert("RGB"), (80, 80), color=(128,) * 3),
    ):
        data = encoded(honest, "JPEG", **options)
        assert picture(data).size == honest.size
        lying = bytearray(data)
        frame = data.index(b"\xff\xc2" if "progressive" in options else b"\xff\xc0")
        lying[frame + 5 : frame + 9] = struct.pack(">HH", 200, 200)
        if honest is image:
            with pytest.raises(UndecodableImage):
                picture(bytes(lying))


def bombs() -> Iterator[Any]:
    jpeg = encoded(seven(40), "JPEG", progressive=True)
    sized = bytearray(jpeg)
    frame = jpeg.index(b"\xff\xc2")
    sized[frame + 5 : frame + 9] = struct.pack(">HH", 5000, 5000)
    control = b"!\xf9\4\x08\0\0\0\0"
    first = b"," + struct.pack("<4HB", 0, 0, 1, 1, 0) + b"\2\2\x44\1\0;"
    whole = b"," + struct.pack("<4HB", 0, 0, 5000, 5000, 0) + b"\2\2\x44\1\0;"
    yield pytest.param(gif_header(5000, 5000) + control + first, id="GIF of one pixel on a large canvas")
    yield pytest.param(gif_header(5000, 5000) + control + whole, id="GIF of few codes")
    yield pytest.param(gif_header(65_535, 65_535) + control + first, id="GIF canvas")
    yield pytest.param(gif_header(5, 5) + b"!\xfe" + b"\1a" * 4_000_000, id="GIF of comments")
    yield pytest.param(gif_header(5, 5) + b"!\xfe\0" * 3_000_000, id="GIF of extensions")
    yield pytest.param(gif_header(5, 5) + bytes(5_000_000), id="GIF of nothing")
    yield pytest.param(bytes(sized), id="JPEG of few bytes")
    yield pytest.param(jpeg[:2] + b"\xff\xe5\0\2" * 2_000_000 + jpeg[2:], id="JPEG of segments")
    yield pytest.param(jpeg[:2] + b"\xff\xf0" * 2_000_000 + jpeg[2:], id="JPEG of reserved markers")
    yield pytest.param(jpeg[:20] + b"a" * 5_000_000 + jpeg[20:], id="JPEG of rubbish")
    yield pytest.param(jpeg[:2] + b"\xff" * 5_000_000 + jpeg[2:], id="JPEG of padding")
    scan = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    yield pytest.param(jpeg[:-2] + scan * 5000 + jpeg[-2:], id="JPEG of scans")
    yield pytest.param(
        PNG_SIGNATURE + png(5, 5)[8:33] + chunk(b"tEXt") * 500_000 + png(5, 5)[33:], id="PNG of comments"
    )
    yield pytest.param(png(5000, 5000)[:33] + png(5, 5)[33:], id="PNG of few bytes")
    yield pytest.param(webp_header(5000, 5000), id="WebP of few bytes")


@pytest.mark.parametrize("data", tuple(bombs()))
def test_what_takes_more_than_its_bytes_is_refused_at_once(data: bytes) -> None:
    """Within 50 ms of this thread's time, though a picture of so many pixels would be accepted."""
    started = time.thread_time()
    with pytest.raises((UndecodableImage, ImageTooLarge)):
        picture(data, 25_000_000)
    assert time.thread_time() - started < 0.05


@KINDS
@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1)])
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "GIF", "BMP"])
def test_pictures_of_one_line(size: tuple[int, int], file_format: str, spec: InputSpec) -> None:
    """However long a line is, it gives pixels, and in no time."""
    data = encoded(seven(28).resize(size), file_format)
    started = time.thread_time()
    assert pixels(data, spec).shape == (32, 32, 3)
    assert time.thread_time() - started < 0.1


SEEDS = [
    *(encoded(photograph().resize((12, 10)), file_format) for file_format in ("PNG", "JPEG", "GIF", "WEBP", "BMP")),
    encoded(seven(16).convert("RGBA"), "PNG"),
    encoded(seven(16), "JPEG", progressive=True, exif=b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0"),
    encoded(seven(16), "WEBP", save_all=True, append_images=[seven(16, ink=90)]),
    encoded(seven(16), "GIF", save_all=True, append_images=[seven(16, ink=90)]),
    bmp(8, 2, 8, 1, b"\x08\x07\0\0\x08\x09\0\1"),
]
STARTS = [
    b"",
    b"\xff\xd8\xff",
    PNG_SIGNATURE,
    b"GIF89a",
    b"RIFF....WEBPVP8 ",
    b"RIFF....WEBPVP8L",
    b"BM" + bytes(12) + b"(",
]


@settings(max_examples=300, deadline=None)
@given(start=st.sampled_from(STARTS), rest=st.binary(max_size=300))
def test_any_bytes(start: bytes, rest: bytes) -> None:
    """Bytes of any kind give pixels or one of the three refusals."""
    give_pixels_or_refuse(start + rest)


@pytest.mark.slow
@settings(max_examples=600, deadline=None)
@given(data=st.data(), seed=st.sampled_from(SEEDS))
def test_any_damage(data: st.DataObject, seed: bytes) -> None:
    """Real images with bytes changed, put in or cut out give pixels or one of the three refusals."""
    damaged = bytearray(seed)
    for _ in range(data.draw(st.integers(1, 5))):
        start, length = data.draw(st.integers(0, len(damaged))), data.draw(st.integers(0, 6))
        damaged[start : start + length] = data.draw(st.binary(max_size=6))
    give_pixels_or_refuse(bytes(damaged))


def give_pixels_or_refuse(data: bytes) -> None:
    try:
        image = picture(data)
    except (UndecodableImage, UnsupportedImage, ImageTooLarge):
        return
    assert image.mode in ("L", "RGB", "RGBA")
    for spec in (DIGIT, PHOTO):
        assert to_pixels(image, spec).shape == (32, 32, 3)


# --- equal pictures, equal answers ------------------------------------------------------------------------------------


def sixteen_bit(image: Image.Image) -> bytes:
    return encoded(Image.fromarray(np.asarray(image, np.uint16) * 257), "PNG")


def interlaced(image: Image.Image) -> bytes:
    """A grey PNG in Adam7 order, which Pillow reads but does not write."""
    grey = np.asarray(image)
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    rows = b"".join(
        b"\0" + row.tobytes() for top, left, down, right in passes for row in grey[top::down, left::right] if row.size
    )
    header = struct.pack(">IIBBBBB", image.width, image.height, 8, 0, 0, 0, 1)
    chunks = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND"))
    return PNG_SIGNATURE + b"".join(chunks)


RECODINGS: dict[str, Callable[[Image.Image], bytes]] = {
    "BMP": lambda image: encoded(image, "BMP"),
    "GIF": lambda image: encoded(image, "GIF"),
    "WebP": lambda image: encoded(image, "WEBP", lossless=True),
    "palette": lambda image: encoded(image.convert("P", palette=Image.Palette.ADAPTIVE), "PNG"),
    "colour": lambda image: encoded(image.convert("RGB"), "PNG"),
    "opaque": lambda image: encoded(image.convert("RGBA"), "PNG"),
    "opaque WebP": lambda image: encoded(image.convert("RGBA"), "WEBP", lossless=True),
}
GREY_RECODINGS: dict[str, Callable[[Image.Image], bytes]] = {
    "16 bits": sixteen_bit,
    "interlaced": interlaced,
    "grey with alpha": lambda image: encoded(image.convert("LA"), "PNG"),
}


@KINDS
@pytest.mark.parametrize("recode", tuple(RECODINGS.values()), ids=tuple(RECODINGS))
def test_lossless_recodings(recode: Callable[[Image.Image], bytes], spec: InputSpec) -> None:
    """One picture, whatever file holds it without loss, gives the same bytes."""
    for image in (few_colours(), digit()):
        assert (pixels(recode(image), spec) == pixels(encoded(image, "PNG"), spec)).all()


@KINDS
@pytest.mark.parametrize("recode", tuple(GREY_RECODINGS.values()), ids=tuple(GREY_RECODINGS))
def test_lossless_recodings_of_grey(recode: Callable[[Image.Image], bytes], spec: InputSpec) -> None:
    """So it is with the ways of holding grey only."""
    for image in (digit(), seven(45)):
        assert (pixels(recode(image), spec) == pixels(encoded(image, "PNG"), spec)).all()


@KINDS
def test_one_bit(spec: InputSpec) -> None:
    """Black and white in one bit are black and white in eight."""
    image = digit().point(lambda level: 255 if level > 99 else 0)
    assert (pixels(encoded(image.convert("1"), "PNG"), spec) == pixels(encoded(image, "PNG"), spec)).all()


@pytest.mark.slow
@KINDS
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_lossless_recodings_of_any_grey_picture(spec: InputSpec, data: st.DataObject) -> None:
    """The same of pictures of any content and shape."""
    width, height = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    content = data.draw(st.binary(min_size=width * height, max_size=width * height))
    image = Image.frombytes("L", (width, height), content)
    expected = to_pixels(image, spec)
    for recode in (*RECODINGS.values(), *GREY_RECODINGS.values()):
        assert (pixels(recode(image), spec) == expected).all()


def filtered(image: Image.Image, seed: int = 0) -> bytes:
    """Rows as a PNG holds them, each said to be filtered in some way; what picture they make is of no matter."""
    rng = np.random.default_rng(seed)
    rows = np.asarray(image).reshape(image.height, -1)
    return np.column_stack((rng.integers(0, 5, image.height, np.uint8), rows)).tobytes()


def png_of(image: Image.Image, *streams: bytes) -> bytes:
    colour = {"L": 0, "RGB": 2, "RGBA": 6}[image.mode]
    header = struct.pack(">IIBBBBB", image.width, image.height, 8, colour, 0, 0, 0)
    return b"".join(
        (PNG_SIGNATURE, chunk(b"IHDR", header), *(chunk(b"IDAT", stream) for stream in streams), chunk(b"IEND"))
    )


def streams(rows: bytes) -> Iterator[tuple[bytes, ...]]:
    """Ways to hold a picture's rows, sound or not."""
    whole = zlib.compress(rows)
    yield (whole,)
    yield (whole[:20], whole[20:])
    yield (b"", whole)
    yield (whole + b"more",)
    yield (whole[:-4],)
    yield (whole[:-4] + b"\0\0\0\0",)
    yield (whole[:20] + b"\xff" + whole[21:],)
    yield (whole[: len(whole) // 2],)
    yield (b"",)
    yield (zlib.compress(rows + rows),)
    yield (zlib.compress(rows[:-1]),)
    yield (zlib.compress(rows[:100]),)
    yield (zlib.compress(b"\5" + rows[1:]),)
    yield (zlib.compress(rows, wbits=31),)


@pytest.mark.parametrize("size", [(1, 1), (32, 32), (300, 200)])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_plain_pngs_are_read_as_pillow_reads_them(mode: str, size: tuple[int, int]) -> None:
    """The shorter way of a small plain PNG gives Pillow's picture, and refuses what Pillow refuses."""
    image = photograph().resize(size).convert(mode)
    for parts in streams(filtered(image)):
        data = png_of(image, *parts)
        try:
            expected = Image.open(BytesIO(data))
            expected.load()
        except (OSError, SyntaxError):
            with pytest.raises(UndecodableImage):
                picture(data)
        else:
            assert picture(data).mode == mode
            assert picture(data).tobytes() == expected.tobytes()


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_what_makes_no_picture_of_a_png_is_passed_over(mode: str) -> None:
    """Comments and bytes after the end change nothing. Needed are an end mark, the header's checksum and pixels."""
    image = photograph().convert(mode)
    plain = png_of(image, zlib.compress(filtered(image)))
    header, rest = plain[:33], plain[33:]
    for data in (
        header + chunk(b"tEXt", b"a\0b") + rest,
        plain + b"more",
        plain + plain,
        plain[:-12] + chunk(b"IEND", b"x"),
    ):
        assert picture(data).tobytes() == picture(plain).tobytes()
    for data in (plain[:-1], plain[:29] + bytes(4) + rest, plain.replace(b"IDAT", b"tEXt")):
        with pytest.raises(UndecodableImage):
            picture(data)


@KINDS
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize("size", [(28, 28), (32, 32), (50, 40), (900, 3)])
def test_raster_gives_the_image_s_pixels(size: tuple[int, int], mode: str, spec: InputSpec) -> None:
    """It does not matter whether a picture is Pillow's or plain bytes."""
    for content in (photograph(), digit(), ImageOps.invert(digit())):
        image = content.resize(size).convert(mode)
        assert (to_pixels(Raster.of(image), spec) == to_pixels(image, spec)).all()


# Stored so that the viewer's turn, by the EXIF standard's table, makes it upright.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@KINDS
@pytest.mark.parametrize("order", ["<", ">"], ids=["little-endian", "big-endian"])
@pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
@pytest.mark.parametrize("orientation", STORED)
def test_orientation(orientation: int, file_format: str, order: str, spec: InputSpec) -> None:
    """A picture stored turned or mirrored, as its EXIF says, is fed upright."""
    upright, turn = few_colours(), STORED[orientation]
    tags = struct.pack(order + "HHIHxxI", EXIF_ORIENTATION, 3, 1, orientation, 0)
    exif = b"Exif\0\0" + (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, 1) + tags
    stored = upright if turn is None else upright.transpose(turn)
    data = encoded(stored, file_format, lossless=True, exif=exif)
    assert (pixels(data, spec) == to_pixels(upright, spec)).all()


@KINDS
@pytest.mark.parametrize("orientation", STORED)
def test_orientation_of_formats_by_setting(orientation: int, spec: InputSpec) -> None:
    """A TIFF too is fed upright, and so is what it holds without loss."""
    upright, turn = few_colours(), STORED[orientation]
    stored = upright if turn is None else upright.transpose(turn)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    for compression in ("raw", "tiff_lzw"):
        data = encoded(stored, "TIFF", compression=compression, exif=exif)
        fed = to_pixels(decode(read_header(data, MAX_PIXELS, accepting(["tiff"]))), spec)
        assert (fed == to_pixels(upright, spec)).all()


def test_formats_are_read_by_setting() -> None:
    """Each alone is read and the others are refused by the names of what is; TIFF and AVIF are not usual."""
    for key, (name, _, _) in FORMATS.items():
        accepted = accepting([key])
        assert accepted.names == name
        for other in FORMATS:
            data = encoded(few_colours(), other)
            if other == key:
                decoded = image_of(decode(read_header(data, MAX_PIXELS, accepted)))
                assert decoded.size == few_colours().size
            else:
                with pytest.raises(UnsupportedImage, match=f"send {name}\\.$"):
                    read_header(data, MAX_PIXELS, accepted)
    for key in ("tiff", "avif"):
        with pytest.raises(UnsupportedImage):
            read_header(encoded(few_colours(), key), MAX_PIXELS)


def test_sixteen_bit_tiff_is_not_clipped_and_floats_are_refused() -> None:
    """16-bit grey keeps its shades; of floats nobody knows which is white."""
    ramp = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    fed = to_pixels(decode(read_header(encoded(Image.fromarray(ramp), "TIFF"), MAX_PIXELS, accepting(["tiff"]))), PHOTO)
    assert (fed[..., 0] == ramp >> 8).all()
    data = encoded(Image.fromarray(ramp.astype(np.float32)), "TIFF")
    with pytest.raises(UndecodableImage):
        decode(read_header(data, MAX_PIXELS, accepting(["tiff"])))


def test_orientation_of_a_photograph() -> None:
    """A phone's JPEG is turned by its EXIF too."""
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    stored = photograph().resize((64, 40))
    upright = picture(encoded(stored, "JPEG")).transpose(Image.Transpose.ROTATE_270)
    assert picture(encoded(stored, "JPEG", exif=exif)).tobytes() == upright.tobytes()


@KINDS
def test_array_is_the_picture(spec: InputSpec) -> None:
    """Pixels sent as numbers give what the picture of them gives."""
    for image in (digit(), photograph(), photograph().convert("RGBA")):
        assert (to_pixels(of_array(np.asarray(image, np.float64)), spec) == to_pixels(image, spec)).all()


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 5)),
        np.zeros(5),
        np.zeros((5, 5, 2)),
        np.full((5, 5), 256),
        np.full((5, 5), -1),
        np.full((5, 5), 0.5),
        np.full((5, 5), np.nan),
        np.full((5, 5), "a"),
        np.full((5, 5), True),
    ],
)
def test_arrays_that_are_no_pictures(array: Any) -> None:
    """Shapes and numbers that are no picture's are refused."""
    with pytest.raises(UndecodableImage):
        of_array(array)


# --- kinds of pictures ------------------------------------------------------------------------------------------------


def test_cmyk() -> None:
    """A CMYK JPEG gives about the colours of the RGB one."""
    image = Image.new("RGB", (16, 16), (200, 60, 30))
    fed = pixels(encoded(image.convert("CMYK"), "JPEG", quality=100), PHOTO)
    assert np.abs(fed.astype(int) - (200, 60, 30)).max() <= 4


def test_sixteen_bit_grey_is_not_clipped() -> None:
    """16-bit grey keeps its shades."""
    ramp = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    fed = pixels(encoded(Image.fromarray(ramp), "PNG"), PHOTO)
    assert (fed[..., 0] == ramp >> 8).all()


@pytest.mark.parametrize("file_format", ["PNG", "GIF", "WEBP"])
def test_animation(file_format: str) -> None:
    """The first picture of an animation counts."""
    first, second = few_colours(), ImageOps.mirror(few_colours())
    lossless = {"lossless": True} if file_format == "WEBP" else {}
    data = encoded(first, file_format, save_all=True, append_images=[second], duration=100, **lossless)
    assert picture(data).convert("RGB").tobytes() == first.tobytes()


def test_multi_picture_jpeg() -> None:
    """The first picture of a phone's MPO file counts."""
    data = encoded(photograph(), "MPO", save_all=True, append_images=[photograph(1)])
    assert Image.open(BytesIO(data)).format == "MPO"
    assert picture(data).tobytes() == picture(encoded(photograph(), "JPEG")).tobytes()


def test_gif_frame_smaller_than_its_canvas() -> None:
    """What the first frame leaves bare of a GIF's canvas is transparent."""
    data = bytearray(encoded(Image.new("RGB", (4, 4), (10, 20, 200)), "GIF"))
    data[6:10] = struct.pack("<HH", 8, 6)
    at = data.index(b"," + bytes(4) + struct.pack("<HH", 4, 4))
    data[at + 1 : at + 5] = struct.pack("<HH", 3, 1)
    image = picture(bytes(data))
    expected = Image.new("RGBA", (8, 6))
    expected.paste((10, 20, 200, 255), (3, 1, 7, 5))
    assert image.tobytes() == expected.tobytes()


def test_transparency_of_a_photograph_is_white() -> None:
    """Behind a photograph's transparent parts lies white."""
    image = photograph().convert("RGBA")
    image.putalpha(0)
    assert (pixels(encoded(image, "PNG"), PHOTO) == 255).all()


def test_palette_transparency() -> None:
    """A transparent colour of a palette is transparent."""
    image = Image.new("P", (32, 32))
    image.putpalette((0, 0, 0, 255, 0, 0))
    assert (pixels(encoded(image, "PNG", transparency=0), PHOTO) == 255).all()


def test_photograph_is_cropped_to_its_centre() -> None:
    """Of a picture wider or higher than the network's, the largest centred part is fed."""
    wide = Image.new("RGB", (96, 32), (255, 0, 0))
    wide.paste(photograph(), (32, 0))
    for image in (wide, wide.transpose(Image.Transpose.TRANSPOSE).transpose(Image.Transpose.FLIP_TOP_BOTTOM)):
        expected = image.crop(
            (image.width // 2 - 16, image.height // 2 - 16, image.width // 2 + 16, image.height // 2 + 16)
        )
        assert (to_pixels(image, PHOTO) == np.asarray(expected)).all()


@KINDS
@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1), (1, 1), (2, 3)])
def test_extreme_shapes(size: tuple[int, int], spec: InputSpec) -> None:
    """A picture may be a line or a dot."""
    image = Image.new("L", size, 255)
    image.putpixel((size[0] // 2, size[1] // 2), 0)
    assert pixels(encoded(image, "PNG"), spec).shape == (32, 32, 3)


# --- digits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", range(16))
def test_dark_on_light_digit(index: int) -> None:
    """A digit and its inverse give the same bytes."""
    assert (to_pixels(ImageOps.invert(digit(index)), DIGIT) == to_pixels(digit(index), DIGIT)).all()


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(data=st.data(), paper=st.integers(0, 255), ink=st.integers(0, 255))
def test_inverse_of_any_drawing(data: st.DataObject, paper: int, ink: int) -> None:
    """Any drawing of one ink on one paper gives the same bytes as its inverse."""
    drawing = Image.new("L", (40, 36), paper)
    line = data.draw(st.lists(st.tuples(st.integers(4, 35), st.integers(4, 31)), min_size=2, max_size=5))
    ImageDraw.Draw(drawing).line(line, fill=ink, width=data.draw(st.integers(1, 4)))
    assert (to_pixels(ImageOps.invert(drawing), DIGIT) == to_pixels(drawing, DIGIT)).all()


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(data=st.data(), paper=st.sampled_from([0, 255, 1, 254]))
def test_ink_of_clean_drawings_is_that_of_any(data: st.DataObject, paper: int) -> None:
    """What the short way finds, the long one finds."""
    width, height = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    points = st.tuples(st.integers(0, width - 1), st.integers(0, height - 1))
    levels = st.sampled_from([0, 63, 64, 191, 192, 255]) | st.integers(0, 255)
    drawing = Image.new("L", (width, height), paper)
    for level in data.draw(st.lists(levels, max_size=3)):
        line = data.draw(st.lists(points, min_size=1, max_size=4))
        ImageDraw.Draw(drawing).line(line, fill=level, width=data.draw(st.integers(1, 6)))
    for dot, level in data.draw(st.lists(st.tuples(points, levels), max_size=5)):
        drawing.putpixel(dot, level)
    grey = Raster.of(drawing)
    clean, found = _clean_ink(grey), _any_ink(grey)
    if clean is not None:
        assert found is not None
        assert np.array_equal(clean[0], found[0])
        assert clean[1] == found[1]


def test_clean_drawings_are_inked_up_to_half() -> None:
    """Half of the picture may be ink, and the least of it is of level 64."""
    drawing = Image.new("L", (10, 10))
    drawing.paste(255, (2, 3, 8, 9))
    drawing.paste(64, (1, 1, 8, 3))
    assert Raster.of(drawing).pixels.count(0) == 50
    found = _clean_ink(Raster.of(drawing))
    assert found is not None
    assert found[1] == (1, 9, 1, 8)
    drawing.putpixel((8, 1), 63)
    assert _clean_ink(Raster.of(drawing)) is not None
    drawing.putpixel((8, 1), 64)
    assert _clean_ink(Raster.of(drawing)) is None


@pytest.mark.parametrize("invert", [False, True])
def test_clean_drawings_go_the_short_way(invert: bool) -> None:
    """MNIST's digits do, white on black as well as black on white; faint, bold, large and blank pictures do not."""
    clean = ImageOps.invert(digit()) if invert else digit()
    assert _clean_ink(Raster.of(clean)) is not None
    bold = ImageOps.expand(Image.new("L", (26, 26), 0 if invert else 255), 1, 255 if invert else 0)
    for other in (clean.point(lambda level: 40 + level // 2), bold, clean.resize((65, 65)), Image.new("L", (28, 28))):
        assert _clean_ink(Raster.of(other)) is None


@pytest.mark.parametrize("side", [60, 280, 1500])
def test_digit_fills_its_box_about_its_centre_of_mass(side: int) -> None:
    """Whatever its size in the picture, a digit's longer side is some 20 pixels and its mass is centred."""
    fed = to_pixels(seven(side, side // 14), DIGIT)[..., 0]
    inked = fed >= 64
    assert 19 <= max(np.ptp(np.flatnonzero(inked.any(axis))) + 1 for axis in (0, 1)) <= 21
    for axis in (0, 1):
        profile = fed.sum(axis, dtype=np.int64)
        assert abs(profile @ (np.arange(32) + 0.5) / profile.sum() - 16) <= 1
    assert fed.max() == 255


@pytest.mark.parametrize("place", [(0, 0), (1, 0), (0, 1), (1, 1), (0.3, 0.7)])
def test_place_of_a_digit_is_nothing(place: tuple[float, float]) -> None:
    """A digit may be anywhere in its picture, even touch the border."""
    tight = seven().crop(ImageOps.invert(seven()).getbbox())
    moved = Image.new("L", (280, 280), 255)
    moved.paste(tight, (round(place[0] * (280 - tight.width)), round(place[1] * (280 - tight.height))))
    assert likeness(to_pixels(moved, DIGIT), to_pixels(seven(), DIGIT)) > 0.95


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 6, 9])
@pytest.mark.parametrize("field", [28, 32])
def test_tiny_digits(side: int, field: int) -> None:
    """A digit of a few pixels, even a dot, is enlarged into its box."""
    drawing = Image.new("L", (50, 50), 255)
    drawing.paste(0, (20, 10, 20 + (side + 1) // 2, 10 + side))
    fed = to_pixels(drawing, InputSpec("digit", field, field, DIGIT.mean, DIGIT.std))[..., 0]
    assert 17 <= np.count_nonzero((fed >= 64).any(1)) <= 25


@KINDS
@pytest.mark.parametrize("level", [0, 1, 127, 254, 255])
@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_blank_pictures(mode: str, level: int, spec: InputSpec) -> None:
    """A picture of one colour is no error; to digits it is an empty field."""
    image = Image.new("L", (50, 30), level).convert(mode)
    fed = to_pixels(image, spec)
    assert (fed == (0 if spec is DIGIT else level)).all()


def test_specks_are_no_digit() -> None:
    """Faint specks so far apart that they vanish when the drawing is sized leave an empty field."""
    image = Image.new("L", (790, 790), 0)
    image.putpixel((5, 5), 80)
    image.putpixel((780, 780), 80)
    image.putpixel((400, 400), 255)
    assert not np.asarray(to_pixels(image, DIGIT)).any()


@pytest.mark.parametrize("strokes", [0, 90, 255])
@pytest.mark.parametrize("side", [280, 1200])
def test_strokes_on_transparency(strokes: int, side: int) -> None:
    """A drawing on a transparent canvas, dark or light, gives what it gives on paper."""
    opaque = seven(side, side // 14)
    drawing = Image.new("RGBA", opaque.size, (strokes,) * 3)
    drawing.putalpha(ImageOps.invert(opaque))
    difference = pixels_of(drawing).astype(int) - pixels_of(opaque)
    assert np.abs(difference).max() <= 2


def pixels_of(image: Image.Image) -> Pixels:
    return to_pixels(picture(encoded(image, "PNG"), 25_000_000), DIGIT)


@pytest.mark.parametrize("width", [4, 20, 40])
@pytest.mark.parametrize("tone", [0, 120])
def test_framed_digit(width: int, tone: int) -> None:
    """A frame about the picture is not the digit."""
    framed = ImageOps.expand(seven(), width, tone)
    assert likeness(to_pixels(framed, DIGIT), to_pixels(seven(), DIGIT)) > 0.95


@pytest.mark.parametrize("stroke", [60, 90])
def test_bold_digit_is_not_taken_for_paper(stroke: int) -> None:
    """A digit that covers most of its picture is still the ink."""
    bold = seven(stroke=stroke).crop((60, 40, 220, 240))
    fed = to_pixels(bold, DIGIT)
    assert likeness(fed, to_pixels(seven(stroke=stroke), DIGIT)) > 0.8


@pytest.mark.parametrize("slope", [0, 60, 120])
@pytest.mark.parametrize("ink", [30, 120], ids=["pen", "pencil"])
@pytest.mark.parametrize("light", [False, True], ids=["dark on light", "light on dark"])
def test_photographed_digit(slope: int, ink: int, light: bool) -> None:
    """A digit is found on unevenly lit, noisy paper in a JPEG."""
    rng = np.random.default_rng(0)
    lamp = 190 + slope * (np.linspace(-0.5, 0.5, 280) + np.linspace(-0.4, 0.4, 280)[:, None]) / 2
    ideal = np.asarray(seven()) / 255
    photographed = lamp * (ink / 255 + (1 - ink / 255) * ideal) + rng.normal(0, 5, (280, 280))
    image = Image.fromarray(photographed.clip(0, 255).astype(np.uint8))
    data = encoded((ImageOps.invert(image) if light else image).convert("RGB"), "JPEG", quality=75)
    assert likeness(pixels(data, DIGIT), to_pixels(seven(), DIGIT)) > 0.9
