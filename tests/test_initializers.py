"""service.backends.initializers: reads the weights that the onnx package reads, and takes no harm from what is none."""

import time
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, helper, numpy_helper

from service import bundle
from service.backends import onnx as onnx_backend
from service.backends.initializers import initializers
from service.settings import BUNDLES

SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)
NAMES = st.text(max_size=12)
# Seconds for a megabyte of anything; it takes a tenth.
BOUND_S = 10
OTHERS = [np.float64, np.int64, np.int32, np.uint8, np.float16, np.bool_]


def model(*tensors: TensorProto) -> onnx.ModelProto:
    return helper.make_model(helper.make_graph([], "g", [], [], tensors))


def by_onnx(content: bytes) -> dict[str, npt.NDArray[Any]]:
    """The float32 initializers as the onnx package reads them."""
    tensors = onnx.load_from_string(content).graph.initializer
    return {t.name: numpy_helper.to_array(t) for t in tensors if t.data_type == TensorProto.FLOAT}


def agree(content: bytes) -> None:
    found, expected = initializers(content), by_onnx(content)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].shape == array.shape
        assert found[name].dtype == np.float32
        assert found[name].tobytes() == array.tobytes()


@pytest.mark.parametrize("name", sorted(path.name for path in BUNDLES.iterdir()))
def test_those_of_a_committed_graph_are_read(name: str) -> None:
    """Every float weight, bit by bit; the calibration's are among them."""
    content = (bundle.discover(BUNDLES)[name].directory / onnx_backend.FILE).read_bytes()
    agree(content)
    assert {"prediction_set_threshold", "ood_threshold"} <= initializers(content).keys()


@st.composite
def tensors(draw: st.DrawFn) -> TensorProto:
    """Of any kind, shape and name, in either way of writing."""
    kind = draw(st.sampled_from([np.float32, np.float32, *OTHERS]))
    array = draw(arrays.arrays(kind, draw(SHAPES)))
    tensor = numpy_helper.from_array(array, draw(NAMES))
    if kind is np.float32 and draw(st.booleans()):
        tensor.ClearField("raw_data")
        tensor.float_data.extend(array.ravel().tolist())
    return tensor


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(tensors(), max_size=6))
def test_every_float_weight_is_read(found: list[TensorProto]) -> None:
    """Scalars, empty ones, repeated and odd names, among others of other kinds."""
    agree(model(*found).SerializeToString())


def test_floats_that_are_written_one_by_one_are_read() -> None:
    """A field for each, as an old protobuf writes them; so with the shape."""
    tensor = (
        b"".join((b"\x08\x02", b"\x08\x01", b"\x10\x01", b"\x42\x01w", b"\x25", np.float32(1.5).tobytes(), b"\x25"))
        + np.float32(-2).tobytes()
    )
    graph = b"\x2a" + bytes([len(tensor)]) + tensor
    content = b"\x3a" + bytes([len(graph)]) + graph
    agree(content)
    np.testing.assert_array_equal(initializers(content)["w"], np.array([[1.5], [-2]], np.float32))


def test_of_two_of_one_name_the_runtime_takes_the_same() -> None:
    """What is checked is what counts."""
    one, two = (numpy_helper.from_array(np.array([value], np.float32), "w") for value in (1.0, 2.0))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1,)) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [one, two])
    content = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 20)]).SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {"x": np.zeros(1, np.float32)})
    assert answer[0] == initializers(content)["w"][0]


def test_a_weight_that_lies_elsewhere_is_refused() -> None:
    """It cannot be told from here."""
    tensor = numpy_helper.from_array(np.zeros(3, np.float32), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    with pytest.raises(ValueError, match="cannot reshape"):
        initializers(model(tensor).SerializeToString())


@pytest.mark.parametrize("dims", [[3], [-1], [2**62], [2**63 - 1], [-(2**63)], [2**40, 2**40], [1] * 70, [2, 2**62]])
def test_a_shape_that_is_not_the_data_s_is_refused(dims: list[int]) -> None:
    """However large: it takes no memory."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, raw_data=b"\0" * 8, dims=dims)
    with pytest.raises(ValueError):  # noqa: PT011  numpy has words of its own for each
        initializers(model(tensor).SerializeToString())


def test_a_number_of_more_than_64_bits_is_refused() -> None:
    """Protobuf would cut it, so two readers would see two shapes."""
    dims = b"\x08" + b"\x80" * 9 + b"\x02"
    tensor = dims + b"\x10\x01\x42\x01w"
    graph = b"\x2a" + bytes([len(tensor)]) + tensor
    with pytest.raises(ValueError, match="longer than 64 bits"):
        initializers(b"\x3a" + bytes([len(graph)]) + graph)


def harmless(content: bytes) -> None:
    started = time.monotonic()
    with suppress(ValueError, IndexError):
        initializers(content)
    assert time.monotonic() - started < BOUND_S


@given(st.binary(max_size=400))
def test_garbage_is_refused_or_read(content: bytes) -> None:
    """With the two errors of the docstring and no other."""
    harmless(content)


SOUND = model(
    numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(2, 3), "weights"),
    helper.make_tensor("temperature", TensorProto.FLOAT, [], [1.5]),
    numpy_helper.from_array(np.arange(4), "ids"),
).SerializeToString()


@settings(max_examples=300)
@given(st.data())
def test_a_damaged_graph_is_refused_or_read(data: st.DataObject) -> None:
    """Any bytes changed, taken out or put in."""
    content = bytearray(SOUND)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    harmless(bytes(content))


@given(st.integers(0, len(SOUND) - 1))
def test_a_graph_cut_short_is_not_taken_for_whole(length: int) -> None:
    """Refused, or without a weight that was in it; never with another."""
    try:
        found = initializers(SOUND[:length])
    except (ValueError, IndexError):
        return
    whole = initializers(SOUND)
    assert all(found[name].tobytes() == whole[name].tobytes() for name in found)


@pytest.mark.slow
@pytest.mark.parametrize(
    "repeated",
    [b"\x3a\x00", b"\x3a\x02\x2a\x00", b"\x3a\x04\x2a\x02\x08\x01", b"\x08\x01", b"\x80", b"\xff", b"\x00", b"\x3a"],
)
def test_a_megabyte_of_anything_takes_bounded_time(repeated: bytes) -> None:
    """Of tiny messages and numbers as of noise."""
    harmless(repeated * (2**20 // len(repeated)))
    harmless(np.random.default_rng(0).bytes(2**20))
    inner = b"\x0a" + _varint(2**20) + b"\x01" * 2**20
    harmless(b"\x3a" + _varint(len(inner) + 5) + b"\x2a" + _varint(len(inner)) + inner)


def _varint(number: int) -> bytes:
    parts = []
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])
