"""The small float weights of an ONNX graph by their names: the parameters of its calibration are among them."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from service.backends.external_data import DATA_TYPE, DIMS, GRAPH, INITIALIZER, NAME
from service.backends.protobuf import fields, packed, text

FLOAT = 1
FLOAT_DATA, RAW_DATA = 4, 9

Array = npt.NDArray[np.float32]


def initializers(content: bytes) -> dict[str, Array]:
    """The float32 weights of an ONNX file that lie in it. Raises ValueError or IndexError where it is none.

    Of two of one name the last counts, as in the runtime.
    """
    graphs = [value for field, value in fields(memoryview(content)) if field == GRAPH]
    return dict(_found(graphs))


def _found(graphs: "list[int | memoryview]") -> "Iterator[tuple[str, Array]]":
    for graph in graphs:
        for field, value in fields(graph):
            if field == INITIALIZER:
                name, array = _tensor(value)
                if array is not None:
                    yield name, array


def _tensor(content: "int | memoryview") -> "tuple[str, Array | None]":
    shape: list[int] = []
    parts: list[Array] = []
    name, is_float = "", False
    for field, value in fields(content):
        if field == DIMS:
            shape += [value] if isinstance(value, int) else packed(value)
        elif field == DATA_TYPE:
            is_float = value == FLOAT
        elif field == NAME:
            name = text(value)
        elif field in (FLOAT_DATA, RAW_DATA) and not isinstance(value, int):
            parts.append(np.frombuffer(value, "<f4") if len(value) % 4 == 0 else np.empty(0, np.float32))
    if not is_float:
        return name, None
    return name, np.concatenate([np.empty(0, np.float32), *parts]).reshape(shape)
