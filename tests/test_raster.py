import zlib
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from service.raster import Raster, image_of

MODES = ("L", "RGB", "RGBA")


@st.composite
def images(draw: st.DrawFn) -> Image.Image:
    """Noise of any mode and of few pixels."""
    mode, size = draw(st.sampled_from(MODES)), draw(st.tuples(st.integers(1, 20), st.integers(1, 20)))
    seed = draw(st.integers(0, 2**32 - 1))
    return Image.frombytes(mode, size, np.random.default_rng(seed).bytes(size[0] * size[1] * len(mode)))


@given(image=images())
def test_raster_is_the_image(image: Image.Image) -> None:
    """Bytes, array and image are as Pillow and numpy have them."""
    raster = Raster.of(image)
    assert raster == (image.mode, image.size, image.tobytes())
    assert raster.array().dtype == np.uint8
    assert np.array_equal(raster.array(), np.asarray(image))
    assert image_of(raster) == image
    assert image_of(image) is image


@pytest.mark.parametrize("size", [(1, 70_000), (70_000, 1), (600, 500)])
@pytest.mark.parametrize("mode", MODES)
def test_large_raster(mode: str, size: tuple[int, int]) -> None:
    """A picture larger than Pillow hands out at once is whole."""
    image = Image.linear_gradient("L").resize(size).convert(mode)
    assert Raster.of(image).pixels == image.tobytes()


def test_raster_of_a_file() -> None:
    """A file whose pixels are not decoded yet is decoded."""
    image, buffer = Image.linear_gradient("L"), BytesIO()
    image.save(buffer, "PNG")
    assert Raster.of(Image.open(buffer)).pixels == image.tobytes()


@given(image=images(), data=st.data())
def test_stream_of_a_png(image: Image.Image, data: st.DataObject) -> None:
    """Compressed rows, however filtered, become what Pillow makes of them; what is damaged or cut short is refused."""
    stride = image.width * len(image.mode)
    filters = data.draw(st.lists(st.integers(0, 4), min_size=image.height, max_size=image.height))
    content = image.tobytes()
    rows = b"".join(bytes([kind]) + content[y * stride : (y + 1) * stride] for y, kind in enumerate(filters))
    stream = zlib.compress(rows)
    expected = Image.frombytes(image.mode, image.size, stream, "zip", image.mode, 0)
    assert Raster.of_png_stream(image.mode, image.size, stream) == Raster.of(expected)
    unknown = zlib.compress(b"\5" + rows[1:])
    for unsound in (b"", stream[:2], b"\0" + stream[1:], unknown):
        with pytest.raises(ValueError, match="no stream"):
            Raster.of_png_stream(image.mode, image.size, unsound)
