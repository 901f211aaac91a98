"""service.backends.nodes: reads the nodes that the onnx package reads, and has graphs answer what lies within."""

from contextlib import suppress
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from service.backends import onnx as onnx_backend
from service.backends.nodes import Node, answering, nodes
from service.settings import BUNDLES
from tests.conftest import committed

NAMES = st.text(max_size=8)
VALUES = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.floats(width=32, allow_nan=False),
    NAMES,
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5),
)


def by_onnx(content: bytes) -> list[Node]:
    """As the onnx package reads them: numbers, texts and whole numbers."""

    def value(attribute: onnx.AttributeProto) -> Any:
        found = helper.get_attribute_value(attribute)
        if isinstance(found, bytes):
            return found.decode()
        return tuple(found) if isinstance(found, list) else found

    return [
        Node(
            node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}",
            tuple(node.input),
            tuple(node.output),
            {attribute.name: value(attribute) for attribute in node.attribute},
        )
        for node in onnx.load_from_string(content).graph.node
    ]


@pytest.mark.parametrize("name", sorted(path.name for path in BUNDLES.iterdir()))
def test_those_of_a_committed_graph_are_read(name: str) -> None:
    """Operators, tensors and attributes of each node, in order."""
    content = (committed(name) / onnx_backend.FILE).read_bytes()
    assert nodes(content) == by_onnx(content)


@st.composite
def any_nodes(draw: st.DrawFn) -> onnx.NodeProto:
    attributes = draw(st.dictionaries(st.text(min_size=1, max_size=8), VALUES, max_size=4))
    found = helper.make_node(
        draw(NAMES), draw(st.lists(NAMES, max_size=3)), draw(st.lists(NAMES, max_size=3)), domain=draw(NAMES)
    )
    found.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    return found


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(any_nodes(), max_size=5))
def test_every_node_is_read(drawn: list[onnx.NodeProto]) -> None:
    """Whatever its names and the numbers among its attributes, negative ones too."""
    content = helper.make_model(helper.make_graph(drawn, "g", [], [])).SerializeToString()
    assert nodes(content) == by_onnx(content)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_what_is_no_graph_is_an_error_of_two_kinds(content: bytes) -> None:
    """Never anything else."""
    with suppress(ValueError, IndexError):
        nodes(content)


def test_an_attribute_of_the_wrong_kind_is_refused() -> None:
    """A number of 32 bits that is none, and a whole number that is none."""
    for field in (b"\x10\x01", b"\x1a\x01a"):
        attribute = b"\x0a\x01a" + field
        node = b"\x2a" + bytes([len(attribute)]) + attribute
        graph = b"\x0a" + bytes([len(node)]) + node
        with pytest.raises(ValueError, match="was expected"):
            nodes(b"\x3a" + bytes([len(graph)]) + graph)


def test_a_graph_answers_what_lies_within_it() -> None:
    """Tensors on the way, inputs of nodes and weights, beside what it answered before."""
    weights = helper.make_tensor("w" * 200, TensorProto.FLOAT, [2], [3.0, 5.0])
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "w" * 200], ["within"]), helper.make_node("Neg", ["within"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
        [weights],
    )
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()
    session = onnxruntime.InferenceSession(answering(content, ["within", "w" * 200]))
    assert [output.name for output in session.get_outputs()] == ["y", "within", "w" * 200]
    found = session.run(["within", "w" * 200, "y"], {"x": np.array([1, 2], np.float32)})
    assert [array.tolist() for array in found] == [[3, 10], [3, 5], [-3, -10]]


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(NAMES, max_size=4))
def test_further_outputs_are_as_the_onnx_package_would_write_them(names: list[str]) -> None:
    """And all else is what it was."""
    model = helper.make_model(helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", [], []))
    expected = onnx.ModelProto()
    expected.CopyFrom(model)
    expected.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    assert onnx.load_from_string(answering(model.SerializeToString(), names)) == expected
