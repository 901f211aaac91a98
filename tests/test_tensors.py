"""service.tensors: what a client has in an array is what the network is fed, and nothing hostile is more than a 4xx."""

import io
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import BadParameter, BodyTooLarge, MalformedRequest, Problem, UnsupportedMediaType
from service.images import InputSpec, Pixels
from service.responses import encode
from service.tensors import MAX_NPY_HEADER_BYTES, Tensor, from_npy, from_raw

SPEC = InputSpec("photo", 4, 6, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
SHAPES = [(1, 4, 6, 3), (5, 4, 6, 3), (4, 6, 3), (5, 4, 6), (1, 4, 6), (4, 6)]
WRONG_SHAPES = [
    *[(), (4,), (6, 4), (6, 4, 3), (4, 6, 1), (4, 6, 4), (2, 3, 4, 6), (2, 4, 6, 1), (2, 6, 4, 3), (1, 1, 4, 6, 3)],
    *[(0, 4, 6, 3), (0, 4, 6), (0,), (2, 8, 12, 3)],
]
MANY = 100
HEADER = b"{'descr': '|u1', 'fortran_order': False, 'shape': (4, 6, 3), }"


def pixels(shape: tuple[int, ...]) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def expected(array: Pixels) -> Pixels:
    """What the network is to see of an array that is fine."""
    colour = array if array.shape[-1] == 3 else np.stack([array] * 3, axis=-1)
    return colour if colour.ndim == 4 else colour[None]


def npy(array: npt.NDArray[Any], version: tuple[int, int] | None = None) -> bytes:
    """As numpy writes it."""
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version)
    return file.getvalue()


def by_hand(header: bytes, data: bytes, version: bytes = b"\x01\x00") -> bytes:
    size = len(header).to_bytes(2 if version[0] == 1 else 4, "little")
    return b"\x93NUMPY" + version + size + header + data


def raw(array: Pixels, dtype: bytes = b"", shape: bytes | None = None, max_images: int = MANY) -> Pixels:
    return from_raw(
        array.tobytes(), ",".join(map(str, array.shape)).encode() if shape is None else shape, dtype, SPEC, max_images
    ).pixels


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("version", [None, (1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_npy_file_is_the_array_it_was_made_of(
    shape: tuple[int, ...], version: tuple[int, int] | None, order: Any
) -> None:
    """Every version and order numpy writes, one image or many, grey or colour."""
    array = pixels(shape)
    tensor = from_npy(npy(np.asarray(array, order=order), version), SPEC, MANY)
    found = tensor.pixels
    assert tensor.several is (shape not in {(4, 6), (4, 6, 3)})
    assert (found.dtype.str, found.flags.c_contiguous) == ("|u1", True)
    np.testing.assert_array_equal(found, expected(array))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [b"", b"uint8", b" UINT8 "])
def test_raw_bytes_are_the_array_the_header_tells(shape: tuple[int, ...], dtype: bytes) -> None:
    """One image or many, grey or colour; the type need not be told."""
    array = pixels(shape)
    found = raw(array, dtype)
    assert (found.dtype.str, found.flags.c_contiguous) == ("|u1", True)
    np.testing.assert_array_equal(found, expected(array))


def test_colour_is_not_copied() -> None:
    """The pixels are the body's own bytes."""
    body = npy(pixels((5, 4, 6, 3)))
    assert np.shares_memory(from_npy(body, SPEC, MANY).pixels, np.frombuffer(body, np.uint8))
    body = pixels((5, 4, 6, 3)).tobytes()
    assert np.shares_memory(from_raw(body, b"5,4,6,3", b"", SPEC, MANY).pixels, np.frombuffer(body, np.uint8))


def test_a_network_three_wide_sees_one_colour_image() -> None:
    """(H, 3, 3) could be many grey images of 3 × 3 too; colour comes first."""
    spec = InputSpec("photo", 3, 3, SPEC.mean, SPEC.std)
    assert from_raw(bytes(27), b"3,3,3", b"", spec, MANY).pixels.shape == (1, 3, 3, 3)
    assert from_raw(bytes(36), b"4,3,3", b"", spec, MANY).pixels.shape == (4, 3, 3, 3)


@pytest.mark.parametrize("shape", WRONG_SHAPES, ids=str)
def test_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    """422, and the message tells the shape that came and the one to send."""
    with pytest.raises(BadParameter) as of_file:
        from_npy(npy(pixels(shape)), SPEC, MANY)
    # A header tells no shape without an axis.
    with pytest.raises(BadParameter) as of_bytes:
        raw(pixels(shape or (1,)))
    for refusal, told in ((of_file, shape), (of_bytes, shape or (1,))):
        assert str(told) in refusal.value.detail
        assert "(N, 4, 6, 3)" in refusal.value.detail


def test_more_images_than_allowed_are_too_large() -> None:
    """The limit itself is accepted; a header that tells of more is believed before the bytes are counted."""
    assert len(raw(pixels((5, 4, 6, 3)), max_images=5)) == 5
    for array in (pixels((6, 4, 6, 3)), pixels((6, 4, 6))):
        with pytest.raises(BodyTooLarge, match="holds 6 images; 5 are accepted"):
            from_npy(npy(array), SPEC, 5)
    with pytest.raises(BodyTooLarge, match="holds 999,999,999 images"):
        from_raw(b"", b"999999999,4,6,3", b"", SPEC, 5)


@pytest.mark.parametrize("dtype", [np.int8, np.bool_, np.uint16, np.float32, ">f8", "S1", "U1", "M8[s]"])
def test_only_uint8_is_accepted(dtype: Any) -> None:
    """415, and the message names the type that came."""
    array = np.zeros((1, 4, 6, 3), dtype)
    with pytest.raises(UnsupportedMediaType, match="as uint8") as refusal:
        from_npy(npy(array), SPEC, MANY)
    assert repr(array.dtype.str) in refusal.value.detail
    with pytest.raises(UnsupportedMediaType, match=r"'float32'.*as uint8"):
        raw(pixels((1, 4, 6, 3)), b"float32")


@pytest.mark.parametrize("dtype", [np.dtype(object), np.dtype([("a", "u1")]), np.dtype(("u1", (3,)))])
def test_objects_and_fields_are_never_loaded(dtype: Any) -> None:
    """A pickle stays bytes; so does whatever else is no plain array."""
    array = np.zeros((1, 4, 6), dtype)
    if array.dtype == np.uint8:  # A subarray type becomes axes, so this is a sound file.
        assert from_npy(npy(array), SPEC, MANY).pixels.shape == (1, 4, 6, 3)
        return
    with pytest.raises((MalformedRequest, UnsupportedMediaType)):
        from_npy(npy(array), SPEC, MANY)


@pytest.mark.parametrize(
    "shape",
    [
        *(b"", b",", b"5,4,6,3,", b",5", b"5;4", b"5 4", b"-1,4,6,3", b"+5", b"5.0,4", b"0x5", b"(5,4,6,3)", b"\xff"),
        *(b"9" * 10, b"1," * 8 + b"1", b"9" * 10_000, "٣".encode(), b"5,,4"),
    ],
)
def test_a_shape_that_cannot_be_read_is_malformed(shape: bytes) -> None:
    """400, with an example of what to send."""
    with pytest.raises(MalformedRequest, match="such as 64,4,6,3"):
        raw(pixels((5, 4, 6, 3)), shape=shape)


def test_spaces_in_a_shape_do_not_matter() -> None:
    """As between the elements of any list in a header."""
    assert raw(pixels((5, 4, 6, 3)), shape=b" 5, 4 ,6,\t3 ").shape == (5, 4, 6, 3)


@pytest.mark.parametrize("lacking", [-1, 1, 72, 360])
def test_a_body_of_another_length_is_malformed(lacking: int) -> None:
    """400, with both numbers of bytes."""
    data = bytes(360 - lacking)
    header = HEADER.replace(b"(4", b"(5, 4")
    told = f"takes 360 bytes, and there are {360 - lacking};"
    with pytest.raises(MalformedRequest, match=told):
        from_npy(by_hand(header, data), SPEC, MANY)
    with pytest.raises(MalformedRequest, match=told):
        from_raw(data, b"5,4,6,3", b"", SPEC, MANY)


def test_a_file_cut_anywhere_is_malformed() -> None:
    """No prefix of a file passes for a whole one."""
    body = npy(pixels((1, 4, 6, 3)))
    for length in range(len(body)):
        with pytest.raises(MalformedRequest):
            from_npy(body[:length], SPEC, MANY)


@pytest.mark.parametrize(
    "header",
    [
        HEADER,
        HEADER + b" " * 50 + b"\n",
        b"{'shape':(4,6,3),'descr':'|u1','fortran_order':False}",
        b"{ 'fortran_order' : False , 'shape' : ( 4 , 6 , 3 , ) , 'descr' : '<u1' }",
        b"{'descr': 'u1', 'fortran_order': False, 'shape': (4, 6, 3)}",
    ],
)
def test_headers_of_other_writers_are_read(header: bytes) -> None:
    """Order, spaces and commas are as free as in the literal it is."""
    assert from_npy(by_hand(header, bytes(72)), SPEC, MANY).pixels.shape == (1, 4, 6, 3)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{}",
        b"{",
        HEADER[:-1],
        HEADER[1:],
        b"x" + HEADER[1:],
        HEADER + b"}",
        HEADER + b"x",
        HEADER.replace(b"'shape'", b"'shapes'"),
        HEADER.replace(b", 'shape': (4, 6, 3)", b""),
        HEADER.replace(b"}", b"'shape': (4, 6, 3)}"),
        HEADER.replace(b"}", b"'more': 1}"),
        HEADER.replace(b"}", b",}"),
        HEADER.replace(b"(4, 6, 3)", b"[4, 6, 3]"),
        HEADER.replace(b"(4, 6, 3)", b"(4, 6, -3)"),
        HEADER.replace(b"(4, 6, 3)", b"(4, 6, 3.0)"),
        HEADER.replace(b"(4, 6, 3)", b"(4,, 6, 3)"),
        HEADER.replace(b"(4, 6, 3)", b"(,)"),
        HEADER.replace(b"(4, 6, 3)", b"(4, 6, 3"),
        HEADER.replace(b"(4, 6, 3)", b"(" + b"9" * 4000 + b",)"),
        HEADER.replace(b"(4, 6, 3)", b"True"),
        HEADER.replace(b"False", b"0"),
        HEADER.replace(b"False", b"'C'"),
        HEADER.replace(b"False", b"__import__('os').abort()"),
        HEADER.replace(b"'|u1'", b"[('a', '|u1')]"),
        HEADER.replace(b"'|u1'", b"True"),
        HEADER.replace(b"'|u1'", rb"'\x7cu1'"),
    ],
)
def test_a_header_of_anything_else_is_malformed(header: bytes) -> None:
    """Nothing is guessed and nothing evaluated."""
    with pytest.raises(MalformedRequest, match=r"numpy\.save writes a sound one"):
        from_npy(by_hand(header, bytes(72)), SPEC, MANY)


@pytest.mark.parametrize("version", [b"\x00\x00", b"\x01\x01", b"\x04\x00", b"\xff\xff"])
def test_an_unknown_version_is_malformed(version: bytes) -> None:
    """Formats 1.0, 2.0 and 3.0 are all there are."""
    with pytest.raises(MalformedRequest, match="version is not"):
        from_npy(by_hand(HEADER, bytes(72), version), SPEC, MANY)


def test_a_monstrous_header_is_malformed() -> None:
    """Its length is bounded, whatever it tells and whatever follows."""
    with pytest.raises(MalformedRequest, match="longer than"):
        from_npy(by_hand(HEADER + b" " * MAX_NPY_HEADER_BYTES, bytes(72), b"\x02\x00"), SPEC, MANY)
    with pytest.raises(MalformedRequest, match="longer than"):
        from_npy(b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + HEADER, SPEC, MANY)


def is_refused_or_understood(read: Callable[[], Tensor]) -> None:
    """Either pixels come out or a client's error that can be sent."""
    try:
        outcome: Tensor | Problem = read()
    except Problem as problem:
        outcome = problem
    if isinstance(outcome, Problem):
        assert 400 <= outcome.status < 500
        assert encode(outcome.document("id"))
    else:
        assert outcome.pixels.shape in {(n, 4, 6, 3) for n in (1, 2, 3)}


FRAGMENTS = [
    *(
        b"\x93NUMPY",
        b"\x01\x00",
        b"\x02\x00",
        b"\x03\x00",
        b"\x76\x00",
        b"\x40\x00\x00\x00",
        b"{",
        b"}",
        b"(",
        b")",
        b",",
    ),
    *(
        b"'descr'",
        b"'fortran_order'",
        b"'shape'",
        b": ",
        b"'|u1'",
        b"False",
        b"True",
        b"4",
        b" ",
        b"\n",
        bytes(72),
        b"\xff",
    ),
]


@given(
    st.one_of(st.binary(max_size=200), st.lists(st.sampled_from(FRAGMENTS), max_size=25).map(b"".join)),
    st.one_of(st.binary(max_size=20), st.sampled_from([b"4,6", b"4,6,3", b"1,4,6"])),
    st.sampled_from([b"", b"uint8", b"\xff"]),
)
@settings(deadline=None, max_examples=300)
def test_random_bytes_are_only_ever_a_clients_mistake(body: bytes, shape: bytes, dtype: bytes) -> None:
    """No body or header, however wild, raises anything but a 4xx; nor does one that starts like a file."""
    is_refused_or_understood(lambda: from_raw(body, shape, dtype, SPEC, 3))
    for file in (body, b"\x93NUMPY\x01\x00" + body, by_hand(b"{'descr': '|u1'," + body, bytes(72))):
        is_refused_or_understood(partial(from_npy, file, SPEC, 3))


@given(st.lists(st.integers(0, 7), max_size=5).map(tuple), st.sampled_from(["C", "F"]))
@settings(deadline=None, max_examples=200)
def test_what_is_read_is_what_numpy_reads(shape: tuple[int, ...], order: Any) -> None:
    """Any shape either gives the array numpy.load gives, or is refused."""
    body = npy(np.asarray(pixels(shape), order=order))
    try:
        found = from_npy(body, SPEC, MANY).pixels
    except (BadParameter, BodyTooLarge):
        assert shape not in {(4, 6), (4, 6, 3)}
        return
    np.testing.assert_array_equal(found, expected(np.load(io.BytesIO(body))))
