"""The nodes of an ONNX graph, read without the onnx package, and a graph that also answers what lies within it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain
from typing import TypeAlias

import numpy as np

from service.backends.external_data import GRAPH
from service.backends.protobuf import BYTES, fields, packed, text

# Of onnx.proto's messages.
NODE, OUTPUT_OF_GRAPH, NAME_OF_OUTPUT = 1, 12, 1
INPUT, OUTPUT, OPERATOR, ATTRIBUTE, DOMAIN = 1, 2, 4, 5, 7
NAME, REAL, WHOLE, STRING, WHOLES = 1, 2, 3, 4, 8

Attribute: TypeAlias = float | int | str | tuple[int, ...]


@dataclass(frozen=True)
class Node:
    """One operator, by its domain unless that is ONNX's own, and the tensors it reads and writes, by name.

    Of its attributes those that are a number, a text or whole numbers.
    """

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Attribute] = field(default_factory=dict)

    def whole(self, name: str, default: int) -> int:
        value = self.attributes.get(name, default)
        return value if isinstance(value, int) else default

    def real(self, name: str, default: float) -> float:
        value = self.attributes.get(name, default)
        return value if isinstance(value, float) else default

    def wholes(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        value = self.attributes.get(name, default)
        return value if isinstance(value, tuple) else default


def nodes(content: bytes) -> list[Node]:
    """Those of the graph itself, in its order: each after all it reads. Raises ValueError or IndexError."""
    graphs = [value for number, value in fields(memoryview(content)) if number == GRAPH]
    return [_node(value) for graph in graphs for number, value in fields(graph) if number == NODE]


def answering(content: bytes, names: Iterable[str]) -> bytes:
    """The same file, whose graph has these tensors as further outputs, whatever their types."""
    # Two messages one after the other are one message (protobuf's encoding): lists go on, and so do graphs.
    outputs = b"".join(_message(OUTPUT_OF_GRAPH, _message(NAME_OF_OUTPUT, name.encode())) for name in names)
    return content + _message(GRAPH, outputs)


def _node(content: "int | memoryview") -> Node:
    found: dict[int, list[str]] = {INPUT: [], OUTPUT: [], OPERATOR: [""], DOMAIN: [""]}
    attributes = []
    for number, value in fields(content):
        if number in found:
            found[number].append(text(value))
        elif number == ATTRIBUTE:
            attributes.append(_attribute(value))
    operator, domain = found[OPERATOR][-1], found[DOMAIN][-1]
    if domain not in ("", "ai.onnx"):
        operator = f"{domain}::{operator}"
    known = {name: value for name, value in attributes if value is not None}
    return Node(operator, tuple(found[INPUT]), tuple(found[OUTPUT]), known)


def _attribute(content: "int | memoryview") -> tuple[str, Attribute | None]:
    name, wholes = "", []
    value: Attribute | None = None
    for number, part in fields(content):
        if number == NAME:
            name = text(part)
        elif number == WHOLES:
            wholes.append([part] if isinstance(part, int) else packed(part))
        elif number in READ:
            value = READ[number](part)
    return name, tuple(map(_signed, chain.from_iterable(wholes))) if wholes else value


def _real(part: "int | memoryview") -> float:
    if isinstance(part, int) or len(part) != 4:
        raise ValueError("a number of 32 bits was expected")
    return float(np.frombuffer(part, "<f4")[0])


def _whole(part: "int | memoryview") -> int:
    if not isinstance(part, int):
        raise ValueError("a whole number was expected")
    return _signed(part)


def _signed(number: int) -> int:
    # As int64.
    return number - (1 << 64) if number >> 63 else number


READ: dict[int, Callable[[int | memoryview], Attribute]] = {REAL: _real, WHOLE: _whole, STRING: text}


def _message(number: int, content: bytes) -> bytes:
    """A field of this number that is a message or a text."""
    return _varint(number << 3 | BYTES) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])
