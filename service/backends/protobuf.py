"""The fields of a protobuf message, as ONNX files are made of them, read without the onnx package.

Only what is needed of the encoding; whoever asks knows which fields there are, and passes over those it does not.
"""

from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

Field = tuple[int, "int | memoryview"]


def fields(content: "int | memoryview") -> Iterator[Field]:
    """Of a message, in order: number and value. Raises ValueError or IndexError where it is none."""
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
        # What protobuf reads differently is not read at all.
        if shift > 63:
            raise ValueError("a number is longer than 64 bits")
        byte = content[position]
        position += 1
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            if number >> 64:
                raise ValueError("a number is longer than 64 bits")
            return number, position


def packed(content: memoryview) -> list[int]:
    """Numbers that were written as one field."""
    numbers, position = [], 0
    while position < len(content):
        number, position = _varint(content, position)
        numbers.append(number)
    return numbers


def text(value: "int | memoryview") -> str:
    return "" if isinstance(value, int) else str(value, "utf-8")
