"""service.backends.external_data: a network that keeps weights anywhere but inside is not even given to the runtime."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from service.backends import onnx as onnx_backend
from service.backends.external_data import external_locations, self_contained
from service.errors import BundleError
from service.seal import model_file
from tests.conftest import committed

LOCATIONS = ["/etc/hostname", "../weights.bin", "sub/../../weights.bin", "weights.bin", "link.bin", ""]
PLACES = ["initializer", "sparse", "attribute", "list", "subgraph", "subgraphs", "function", "training"]


def external(location: str | None = None) -> TensorProto:
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "w")
    if location is not None:
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
        tensor.external_data.add(key="length", value="16")
    return tensor


def model_with(tensor: TensorProto, place: str) -> onnx.ModelProto:
    """A model with this tensor in one of the places where the format has room for one."""
    inner = helper.make_graph([], "inner", [], [], [tensor])
    node = helper.make_node("Identity", ["x"], ["y"])
    match place:
        case "attribute":
            node.attribute.add(name="value", t=tensor, type=onnx.AttributeProto.TENSOR)
        case "list":
            node.attribute.add(name="values", type=onnx.AttributeProto.TENSORS).tensors.append(tensor)
        case "subgraph":
            node.attribute.add(name="body", g=inner, type=onnx.AttributeProto.GRAPH)
        case "subgraphs":
            node.attribute.add(name="bodies", type=onnx.AttributeProto.GRAPHS).graphs.append(inner)
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, (4,))
    graph = helper.make_graph([node], "g", [value], [helper.make_tensor_value_info("y", TensorProto.FLOAT, (4,))])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    match place:
        case "initializer":
            model.graph.initializer.append(tensor)
        case "sparse":
            model.graph.sparse_initializer.add(values=tensor)
        case "function":
            constant = helper.make_node("Constant", [], ["c"], value=tensor)
            model.functions.append(helper.make_function("own", "F", [], ["c"], [constant], []))
        case "training":
            model.training_info.add().initialization.CopyFrom(inner)
    return model


@pytest.mark.parametrize("location", LOCATIONS)
@pytest.mark.parametrize("place", PLACES)
def test_weights_outside_are_refused_wherever_they_lie(tmp_path: Path, place: str, location: str) -> None:
    """Absolute, upwards, beside it or by a link, in whatever part of the file: named, with the remedy."""
    directory = tmp_path / "bundle"
    directory.mkdir()
    (tmp_path / "weights.bin").write_bytes(bytes(16))
    (directory / "weights.bin").write_bytes(bytes(16))
    (directory / "link.bin").symlink_to(tmp_path / "weights.bin")
    (directory / "model.onnx").write_bytes(model_with(external(location), place).SerializeToString())
    with pytest.raises(BundleError, match=r"weights in another file.*with all weights\s+inside") as refusal:
        onnx_backend.load(directory, "cpu", 1)
    assert str(directory / "model.onnx") in str(refusal.value)
    assert repr(location) in str(refusal.value)


@pytest.mark.parametrize("place", PLACES)
def test_weights_inside_are_not_mistaken(tmp_path: Path, place: str) -> None:
    """The same places with the weights in the file itself."""
    content = model_with(external(), place).SerializeToString()
    assert list(external_locations(content)) == []
    (tmp_path / "model.onnx").write_bytes(content)
    assert self_contained(model_file(tmp_path, "model.onnx", None)) == content


def test_the_mark_alone_is_enough(tmp_path: Path) -> None:
    """A tensor that is said to be elsewhere, without where."""
    tensor = external()
    tensor.data_location = TensorProto.EXTERNAL
    assert list(external_locations(model_with(tensor, "initializer").SerializeToString())) == [""]


@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_the_served_networks_hold_their_weights(name: str) -> None:
    """Both committed files pass."""
    assert self_contained(model_file(committed(name), "model.onnx", None))


@given(place=st.sampled_from(PLACES), cut=st.floats(0, 1, exclude_max=True), where=st.floats(0, 1, exclude_max=True))
def test_what_hides_them_from_us_hides_them_from_the_format(place: str, cut: float, where: float) -> None:
    """However a byte is changed, or the end cut off: what onnx still reads as external is seen, or the file refused."""
    content = bytearray(model_with(external("../weights.bin"), place).SerializeToString())
    content[int(where * len(content))] ^= 1 + int(cut * 255)
    for changed in (bytes(content), bytes(content[: int(cut * len(content))])):
        try:
            seen = list(external_locations(changed))
        except (ValueError, IndexError, RecursionError):
            continue
        if not seen:
            assert not read_as_external(changed)


def read_as_external(content: bytes) -> bool:
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except Exception:
        return False
    return "external_data {" in str(model) or "data_location: EXTERNAL" in str(model)


def test_a_file_nested_without_end_is_refused(tmp_path: Path) -> None:
    """Graphs in attributes of nodes of graphs: an error, not a crash."""
    content = b""
    for _ in range(3000):
        for tag in (0x32, 0x2A, 0x0A):
            content = bytes([tag]) + varint(len(content)) + content
    (tmp_path / "model.onnx").write_bytes(b"\x3a" + varint(len(content)) + content)
    with pytest.raises(BundleError, match="not a sound ONNX file"):
        self_contained(model_file(tmp_path, "model.onnx", None))


def varint(number: int) -> bytes:
    groups = [number >> shift & 0x7F for shift in range(0, max(1, number.bit_length()), 7)]
    return bytes([group | 0x80 for group in groups[:-1]] + groups[-1:])
