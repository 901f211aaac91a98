"""The weights an ONNX file keeps beside it, read without the onnx package, which the service does without.

Only what is needed of onnx.proto's messages; unknown fields are passed over. A bundle's own network may have no such
weights: whoever writes where they lie could name any file of the machine. The graphs we compile have them, in a file
whose digest we keep.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service.backends.protobuf import fields, packed, text
from service.errors import BundleError
from service.seal import ModelFile

GRAPH, INITIALIZER = 7, 5
DIMS, DATA_TYPE, NAME, EXTERNAL_DATA, DATA_LOCATION = 1, 2, 8, 13, 14
KEY, VALUE = 1, 2
# TensorProto.DataType; numpy has no other.
DTYPES = {1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64"}
DTYPES |= {9: "bool", 10: "float16", 11: "float64", 12: "uint32", 13: "uint64"}
# By message, the fields that lead to tensors, and the message in each: every place where onnx.proto has one.
LEADS_TO_TENSORS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}


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


def self_contained(model: ModelFile) -> bytes:
    """An ONNX file that holds all its weights. Raises BundleError, naming it and where else it keeps them."""
    content = model.read()
    try:
        location = next(external_locations(content), None)
    except (ValueError, IndexError, RecursionError) as error:
        raise BundleError(f"{model.path} is not a sound ONNX file ({error}); export the bundle again.") from error
    if location is not None:
        raise BundleError(
            f"{model.path} keeps weights in another file, {location!r}, which is not allowed; save it with all weights "
            "inside (onnx.save without save_as_external_data) and export the bundle again."
        )
    return content


def external_locations(content: bytes) -> Iterator[str]:
    """Of every tensor outside the file, wherever the tensor stands, where it lies; empty where that is not said.

    Raises ValueError, IndexError or RecursionError where it is no ONNX file.
    """
    return _locations(memoryview(content), "model")


def _locations(content: "int | memoryview", message: str) -> Iterator[str]:
    for field, value in fields(content):
        if message == "tensor":
            if field == EXTERNAL_DATA:
                entry = _entry(value)
                if entry.get(KEY) == "location":
                    yield entry.get(VALUE, "")
            elif field == DATA_LOCATION and value != 0:
                yield ""
        elif field in LEADS_TO_TENSORS[message]:
            yield from _locations(value, LEADS_TO_TENSORS[message][field])


def external_tensors(content: bytes) -> list[ExternalTensor]:
    """The external weights of an ONNX file. Raises ValueError, IndexError or KeyError where it is not one of ours."""
    graphs = [value for field, value in fields(memoryview(content)) if field == GRAPH]
    found = (_tensor(value) for graph in graphs for field, value in fields(graph) if field == INITIALIZER)
    return [tensor for tensor in found if tensor is not None]


def _tensor(content: "int | memoryview") -> ExternalTensor | None:
    shape: list[int] = []
    external: dict[str, str] = {}
    dtype, name = None, ""
    for field, value in fields(content):
        if field == DIMS:
            shape += [value] if isinstance(value, int) else packed(value)
        elif field == DATA_TYPE and isinstance(value, int):
            dtype = DTYPES.get(value)
        elif field == NAME:
            name = text(value)
        elif field == EXTERNAL_DATA:
            entry = _entry(value)
            external[entry[KEY]] = entry[VALUE]
    if "length" not in external:
        return None
    if dtype is None:
        # The runtime would read it itself, unchecked.
        raise ValueError(f"{name} is of a type that numpy has not")
    return ExternalTensor(name, dtype, tuple(shape), int(external.get("offset", "0")), int(external["length"]))


def _entry(content: "int | memoryview") -> dict[int, str]:
    return {key: text(part) for key, part in fields(content)}
