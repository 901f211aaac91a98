"""export.parts: a network taken out of its graph and put back leaves every answer and every parameter as it was."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, utils

from export import onnx as onnx_form
from export.graph import Answering
from export.parts import network_of, rejoined, standardised
from models.datasets import DATASETS
from service.audit import GRAPH
from service.backends import OUTPUTS
from service.backends.initializers import initializers
from service.images import Pixels
from service.settings import BUNDLES
from tests.conftest import committed
from tests.test_export import random_pixels, trained_graph

MODELS = sorted(path.name for path in BUNDLES.iterdir())


def answers(model: ModelProto, pixels: Pixels) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip(OUTPUTS, session.run(OUTPUTS, {"pixels": pixels}), strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back(name: str) -> None:
    """Of each committed bundle: the same answers, the same parameters, and no weight twice."""
    model = onnx.load(committed(name) / GRAPH)
    back = rejoined(network_of(model), model)
    pixels = random_pixels(16)
    for output, expected in answers(model, pixels).items():
        np.testing.assert_array_equal(answers(back, pixels)[output], expected, err_msg=output)
    before, after = (initializers(each.SerializeToString()) for each in (model, back))
    assert before.keys() == after.keys()
    assert len({tensor.name for tensor in back.graph.initializer}) == len(back.graph.initializer)


@pytest.mark.parametrize("name", MODELS)
def test_the_network_is_without_the_answer(name: str) -> None:
    """It ends in the logits and knows no parameter of the calibration."""
    network = network_of(onnx.load(committed(name) / GRAPH))
    assert [output.name for output in network.graph.output] == ["logits"]
    weights = {tensor.name for tensor in network.graph.initializer}
    assert {"mean", "std"} <= weights
    assert not weights & {"temperature", "a", "b", "c", "prediction_set_threshold", "ood_threshold"}


@pytest.mark.slow
def test_features_that_the_answer_needs_are_kept(tmp_path: Path) -> None:
    """By a score that looks at features, these are an end of the network too, before the logits."""
    dimensions = 84
    params = {
        "vim_origin": np.zeros(dimensions, np.float32),
        "vim_residual": np.eye(dimensions, 5, dtype=np.float32),
        "vim_scale": np.array(1, np.float32),
    }
    graph = trained_graph("lenet5", Answering("identity", {}, 0.5, "vim", 0.0, params))
    onnx_form.write(graph, DATASETS["mnist"].input, tmp_path / GRAPH)
    model = onnx.load(tmp_path / GRAPH)
    network = network_of(model)
    features, logits = (output.name for output in network.graph.output)
    assert (features != logits, logits) == (True, "logits")
    pixels = random_pixels(8)
    for output, expected in answers(model, pixels).items():
        np.testing.assert_array_equal(answers(rejoined(network, model), pixels)[output], expected, err_msg=output)


@pytest.mark.parametrize("name", MODELS)
def test_pixels_are_standardised_first(name: str) -> None:
    """Turned, made floats, less their mean, by their deviation: nothing of the network."""
    network = network_of(onnx.load(committed(name) / GRAPH))
    before = utils.Extractor(network).extract_model(["pixels"], [standardised(network)])
    assert sorted(node.op_type for node in before.graph.node) == ["Cast", "Div", "Sub", "Transpose"]
