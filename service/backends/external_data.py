"""The weights an ONNX file keeps beside it, read without the onnx package, which the service does without.

Only what is needed of onnx.proto's ModelProto, GraphProto and TensorProto; unknown fields are passed over.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

GRAPH, INITIALIZER = 7, 5
DIMS, DATA_TYPE, NAME, EXTERNAL_DATA = 1, 2, 8, 13
KEY, VALUE = 1, 2
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
# TensorProto.DataType; a tensor of another type is left to the runtime.
DTYPES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 10: "float16", 11: "float64"}

Field = tuple[int, "int | memoryview"]


@dataclass(frozen=True)
class ExternalTensor:
    """Where a weight lies: `length` bytes from `offset` on."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int

    def array(self, weights: npt.NDArray[np.uint8]) -> npt.NDArray[np.generic]:
        """The weight as a view of the file's bytes. Raises ValueError where it reaches beyond them."""
        count = self.length // np.dtype(self.dtype).itemsize
        return np.frombuffer(weights, self.dtype, count, self.offset).reshape(self.shape)


def external_tensors(model: Path) -> list[ExternalTensor]:
    """The external weights of an ONNX file. Raises ValueError or IndexError where it is not one."""
    content = memoryview(model.read_bytes())
    graphs = [value for field, value in _fields(content) if field == GRAPH]
    found = (_tensor(value) for graph in graphs for field, value in _fields(graph) if field == INITIALIZER)
    return [tensor for tensor in found if tensor is not None]


def _tensor(content: "int | memoryview") -> ExternalTensor | None:
    shape: list[int] = []
    external: dict[str, str] = {}
    dtype, name = None, ""
    for field, value in _fields(content):
        if field == DIMS:
            shape += [value] if isinstance(value, int) else _packed(value)
        elif field == DATA_TYPE and isinstance(value, int):
            dtype = DTYPES.get(value)
        elif field == NAME:
            name = _text(value)
        elif field == EXTERNAL_DATA:
            entry = {key: _text(part) for key, part in _fields(value)}
            external[entry[KEY]] = entry[VALUE]
    if dtype is None or "length" not in external:
        return None
    return ExternalTensor(name, dtype, tuple(shape), int(external.get("offset", "0")), int(external["length"]))


def _fields(content: "int | memoryview") -> Iterator[Field]:
    if isinstance(content, int):
        raise ValueError("a message was expected, not a number")
    position = 0
    while position < len(content):
        key, position = _varint(content, position)
        kind = key & 7
        if kind == VARINT:
            number, position = _varint(content, position)
            yield key >> 3, number
            continue
        if kind == BYTES:
            length, position = _varint(content, position)
        elif kind in (FIXED32, FIXED64):
            length = 4 if kind == FIXED32 else 8
        else:
            raise ValueError(f"wire type {kind} is not used by ONNX")
        if position + length > len(content):
            raise ValueError("the file ends within a field")
        yield key >> 3, content[position : position + length]
        position += length


def _varint(content: memoryview, position: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = content[position]
        position += 1
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return number, position


def _packed(content: memoryview) -> list[int]:
    numbers, position = [], 0
    while position < len(content):
        number, position = _varint(content, position)
        numbers.append(number)
    return numbers


def _text(value: "int | memoryview") -> str:
    return "" if isinstance(value, int) else str(value, "utf-8")
