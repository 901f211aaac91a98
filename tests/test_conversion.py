"""export.conversion: a network in fewer bits is nearly the same network, and the answer behind it is untouched."""

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, numpy_helper

from export.conversion import BATCH_SIZE, CONVERSIONS, WEIGHTED, Batches
from export.parts import network_of, rejoined
from service import bundle
from service.audit import GRAPH
from service.backends.initializers import initializers
from service.documents import VARIANT_PRECISIONS, VariantPrecision
from service.images import Pixels, decode, read_header, to_pixels
from service.settings import BUNDLES
from tests.conftest import committed, fixtures
from tests.test_parts import answers

MODELS = sorted(path.name for path in BUNDLES.iterdir())
# By precision: in logits, on average over images and classes.
NEAR = {"int8": 0.15, "fp16": 0.02}
# At most this share of a network's bytes.
SMALLER = {"int8": 0.4, "fp16": 0.6}

Made = dict[tuple[str, str], ModelProto]


def shown(name: str) -> Pixels:
    spec = bundle.load(committed(name)).manifest.input
    return np.stack([to_pixels(decode(read_header(file, 10**6)), spec) for file, _ in fixtures(name)])


def original(name: str) -> ModelProto:
    return onnx.load(committed(name) / GRAPH)


@pytest.fixture(scope="module")
def made() -> Made:
    """Each network in each precision, by the fixtures."""
    return {
        (name, precision): make(network_of(original(name)), shown(name))
        for name in MODELS
        for precision, make in CONVERSIONS.items()
    }


each = pytest.mark.parametrize(("name", "precision"), [(n, p) for n in MODELS for p in VARIANT_PRECISIONS])


@pytest.mark.slow
@each
def test_the_answers_are_nearly_the_same(name: str, precision: VariantPrecision, made: Made) -> None:
    """Logits are near, and hardly an image has another label."""
    model, pixels = original(name), shown(name)
    before, after = (answers(each, pixels) for each in (model, rejoined(made[name, precision], model)))
    assert 0 < np.abs(after["logits"] - before["logits"]).mean() < NEAR[precision]
    assert (after["logits"].argmax(1) == before["logits"].argmax(1)).mean() > 0.96


@pytest.mark.slow
@each
def test_the_answer_behind_is_untouched(name: str, precision: VariantPrecision, made: Made) -> None:
    """Its parameters have their names and are float32, to the bit."""
    model = original(name)
    before, after = (initializers(each.SerializeToString()) for each in (model, rejoined(made[name, precision], model)))
    network = {tensor.name for tensor in network_of(model).graph.initializer}
    parameters = before.keys() - network
    assert {"temperature", "prediction_set_threshold", "ood_threshold"} & parameters
    for parameter in parameters:
        np.testing.assert_array_equal(after[parameter], before[parameter], err_msg=parameter)


@pytest.mark.slow
@each
def test_it_is_smaller(name: str, precision: VariantPrecision, made: Made) -> None:
    """In bytes."""
    whole = network_of(original(name)).ByteSize()
    assert made[name, precision].ByteSize() < SMALLER[precision] * whole


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_int8_is_by_channel(name: str, made: Made) -> None:
    """Each layer but the last has int8 weights, with a scale for each of its channels."""
    network = made[name, "int8"]
    weights = {tensor.name: tensor for tensor in network.graph.initializer}
    scaled = {node.output[0]: node for node in network.graph.node if node.op_type == "DequantizeLinear"}
    weighted = [node for node in network.graph.node if node.op_type in WEIGHTED]
    assert len(weighted) > 2
    for node in weighted[:-1]:
        of = scaled[node.input[1]]
        assert weights[of.input[0]].data_type == TensorProto.INT8
        assert numpy_helper.to_array(weights[of.input[1]]).size > 1


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_layer_that_makes_the_logits_stays_in_float32(name: str, made: Made) -> None:
    """With its weights, and nothing is rounded behind it."""
    network = made[name, "int8"]
    weights = {tensor.name: tensor for tensor in network.graph.initializer}
    last = [node for node in network.graph.node if node.op_type in WEIGHTED][-1]
    assert weights[last.input[1]].data_type == TensorProto.FLOAT
    place = list(network.graph.node).index(last)
    assert not {node.op_type for node in list(network.graph.node)[place:]} & {"QuantizeLinear", "DequantizeLinear"}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_fp16_is_so_from_standardised_pixels_to_logits(name: str, made: Made) -> None:
    """Cast once there and once back; no weight in between is wider, and none before is narrower."""
    network = made[name, "fp16"]
    casts = [each.i for node in network.graph.node if node.op_type == "Cast" for each in node.attribute]
    assert casts == [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.FLOAT]
    wide = {t.name for t in network.graph.initializer if t.data_type == TensorProto.FLOAT}
    assert wide == {"mean", "std"}


@pytest.mark.slow
def test_the_same_again(made: Made) -> None:
    """Of the same network and images, to the byte."""
    again = CONVERSIONS["int8"](network_of(original("digits")), shown("digits"))
    assert again.SerializeToString(deterministic=True) == made["digits", "int8"].SerializeToString(deterministic=True)


@pytest.mark.parametrize("count", [1, BATCH_SIZE, 2 * BATCH_SIZE + 1])
def test_every_image_is_given_once(count: int) -> None:
    """In order, and then nothing."""
    images = np.arange(count, dtype=np.uint8).reshape(count, 1, 1, 1)
    batches, found = Batches(images), []
    while (batch := batches.get_next()) is not None:
        assert batch.keys() == {"pixels"}
        found.append(batch["pixels"])
    np.testing.assert_array_equal(np.concatenate(found), images)
    assert batches.get_next() is None
