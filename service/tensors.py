"""Many images as one tensor: a `.npy` file, or raw bytes whose shape stands in a header of the request.

A tensor is what the network is fed: uint8 pixels of its own height and width. Nothing is decoded, turned, scaled or
framed. Pictures of digits and photographs as they come are sent as files, which go through `images.to_pixels`.
"""

import math
import re
import struct
from dataclasses import dataclass
from typing import Literal

import numpy as np

from service.errors import BadParameter, BodyTooLarge, MalformedRequest, UnsupportedMediaType
from service.images import InputSpec, Pixels

Shape = tuple[int, ...]

NPY = b"application/x-npy"
SHAPE_HEADER, DTYPE_HEADER = b"x-tensor-shape", b"x-tensor-dtype"
SIZES = re.compile(rb"\s*\d{1,9}\s*(?:,\s*\d{1,9}\s*){0,7}")

# numpy.lib.format: the magic, the version, the length of the header, the header. By major version, how long is told.
NPY_MAGIC = b"\x93NUMPY"
NPY_LENGTHS = {1: struct.Struct("<H"), 2: struct.Struct("<I"), 3: struct.Struct("<I")}
# A plain array's takes 118 bytes or a little more.
MAX_NPY_HEADER_BYTES = 4096
# The header is a Python literal; it is matched, never evaluated. A type of fields or objects does not match.
NPY_ENTRY = re.compile(
    rb"\s*'(?P<key>descr|fortran_order|shape)'\s*:\s*"
    rb"(?P<value>'[^'\\]*'|True|False|\(\s*(?:\d{1,18}\s*,\s*)*(?:\d{1,18}\s*)?\))\s*(?:,|(?=\}))"
)
# The byte order of single bytes is nothing.
NPY_UINT8 = re.compile(rb"'[|<>=]?u1'")


@dataclass(frozen=True)
class Tensor:
    """pixels (N, H, W, 3) uint8; `several` tells that it was sent as a list of images, though of one."""

    pixels: Pixels
    several: bool


def from_npy(body: bytes, spec: InputSpec, max_images: int) -> Tensor:
    """A `.npy` file of format 1 to 3 → (N, H, W, 3) uint8; in C order and colour without a copy.

    Raises what `from_raw` does.
    """
    start, header = _npy_header(body)
    if not NPY_UINT8.fullmatch(header[b"descr"]):
        raise _wrong_type(header[b"descr"].strip(b"'"))
    shape = tuple(int(size) for size in re.findall(rb"\d+", header[b"shape"]))
    return _pixels(
        memoryview(body)[start:], shape, "F" if header[b"fortran_order"] == b"True" else "C", spec, max_images
    )


def from_raw(body: bytes, shape_header: bytes, dtype_header: bytes, spec: InputSpec, max_images: int) -> Tensor:
    """Bytes in C order, of the shape told by X-Tensor-Shape → (N, H, W, 3) uint8; colour without a copy.

    (N, H, W, 3) or (H, W, 3), or grey (N, H, W) or (H, W). X-Tensor-Dtype may be empty. Raises MalformedRequest (400:
    a header that cannot be read, a body that is not as long as told), BodyTooLarge (413: too many images),
    UnsupportedMediaType (415: not uint8) or BadParameter (422: another shape).
    """
    if dtype_header.strip().lower() not in (b"", b"uint8"):
        raise _wrong_type(dtype_header)
    if not SIZES.fullmatch(shape_header):
        raise MalformedRequest(
            f"X-Tensor-Shape is {_quoted(shape_header)}; send sizes with commas between, such as "
            f"64,{spec.height},{spec.width},3."
        )
    return _pixels(memoryview(body), tuple(map(int, shape_header.split(b","))), "C", spec, max_images)


def _npy_header(body: bytes) -> tuple[int, dict[bytes, bytes]]:
    """Where the array starts, and what is told of it: descr, fortran_order and shape as they are written."""
    start, header = _npy_header_text(body)
    entries: dict[bytes, bytes] = {}
    at = 1
    while entry := NPY_ENTRY.match(header, at):
        if entry["key"] in entries:
            raise _malformed_npy(f"its header tells {entry['key'].decode()} twice")
        entries[entry["key"]] = entry["value"]
        at = entry.end()
    kinds = {b"descr": b"'", b"fortran_order": b"TF", b"shape": b"("}
    sound = entries.keys() == kinds.keys() and all(entries[key][0] in kind for key, kind in kinds.items())
    if not (sound and header[:1] == b"{" and re.fullmatch(rb"\s*\}\s*", header[at:])):
        raise _malformed_npy("its header is not that of a plain array")
    return start, entries


def _npy_header_text(body: bytes) -> tuple[int, bytes]:
    """Where the header ends, and the header."""
    if not body.startswith(NPY_MAGIC):
        raise _malformed_npy("it does not start as one")
    length = NPY_LENGTHS.get(body[6]) if len(body) > 7 and body[7] == 0 else None
    if length is None:
        raise _malformed_npy("its version is not 1.0, 2.0 or 3.0")
    start = 8 + length.size
    if len(body) < start:
        raise _malformed_npy("it ends within its header")
    size = length.unpack_from(body, 8)[0]
    if size > MAX_NPY_HEADER_BYTES:
        raise _malformed_npy(f"its header is longer than {MAX_NPY_HEADER_BYTES} bytes")
    if len(body) < start + size:
        raise _malformed_npy("it ends within its header")
    return start + size, body[start : start + size]


def _pixels(data: memoryview, shape: Shape, order: Literal["C", "F"], spec: InputSpec, max_images: int) -> Tensor:
    whole = _with_count_and_channels(shape, spec)
    if whole[0] > max_images:
        raise BodyTooLarge(f"The tensor holds {whole[0]:,} images; {max_images:,} are accepted in one request.")
    if math.prod(shape) != len(data):
        raise MalformedRequest(
            f"A tensor of shape {shape} takes {math.prod(shape):,} bytes, and there are {len(data):,}; "
            "send one byte for each number."
        )
    array = np.frombuffer(data, np.uint8).reshape(shape, order=order)
    pixels = np.ascontiguousarray(array).reshape(whole)
    one = shape in ((spec.height, spec.width), (spec.height, spec.width, 3))
    return Tensor(pixels if whole[3] == 3 else pixels.repeat(3, axis=3), not one)


def _with_count_and_channels(shape: Shape, spec: InputSpec) -> tuple[int, int, int, int]:
    """The shape as (N, H, W, channels). One colour image comes before many grey ones, should a network be 3 wide."""
    count, channels = 1, 3
    match shape:
        case (spec.height, spec.width, 3):
            pass
        case (count, spec.height, spec.width, 3):
            pass
        case (spec.height, spec.width):
            channels = 1
        case (count, spec.height, spec.width):
            channels = 1
        case _:
            count = 0
    if count == 0:
        raise BadParameter(
            f"A tensor of shape {shape} is not what this model is fed; send uint8 of shape (N, {spec.height}, "
            f"{spec.width}, 3) or ({spec.height}, {spec.width}, 3), or grey without the 3, and N at least 1."
        )
    return count, spec.height, spec.width, channels


def _wrong_type(name: bytes) -> UnsupportedMediaType:
    return UnsupportedMediaType(f"The tensor is of type {_quoted(name)}; send pixels from 0 to 255 as uint8.")


def _malformed_npy(reason: str) -> MalformedRequest:
    return MalformedRequest(f"The body is no .npy file that can be read here: {reason}; numpy.save writes a sound one.")


def _quoted(text: bytes) -> str:
    return repr(text[:64].decode("latin-1"))
