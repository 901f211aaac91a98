"""loadtest.promised: what is compared is the same network, with and without its promises."""

import re
from pathlib import Path

import numpy as np
import onnx
import pytest

from loadtest import promised
from service import bundle
from service.backends import OUTPUTS
from service.backends import onnx as onnx_backend
from service.calibration import softmax
from service.settings import BUNDLES
from tests.conftest import calibration

LINE = re.compile(r"(\w+) batch (\d+): ([\d.]+) µs an image with, ([\d.]+) without, ratio (\d\.\d{4})")
MODELS = sorted(path.name for path in BUNDLES.iterdir())


def graph(name: str) -> Path:
    return bundle.discover(BUNDLES, (name,))[name].directory / onnx_backend.FILE


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_bare_graph_is_the_same_network(name: str, tmp_path: Path) -> None:
    """The same logits for the same pixels, their plain softmax, and nothing else."""
    content = promised._bare(graph(name), tmp_path / "bare.onnx")
    whole, bare = promised._session(graph(name).read_bytes()), promised._session(content)
    assert [output.name for output in bare.get_outputs()] == ["logits", "probabilities"]
    pixels = np.random.default_rng(0).integers(0, 256, (5, *whole.get_inputs()[0].shape[1:]), np.uint8)
    answers = dict(zip(OUTPUTS, whole.run(OUTPUTS, {"pixels": pixels}), strict=True))
    logits, probabilities = bare.run(None, {"pixels": pixels})
    np.testing.assert_allclose(logits, answers["logits"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(probabilities, softmax(logits.astype(np.float64)), rtol=0, atol=1e-6)
    # Of a network that is calibrated as it is, nothing was taken.
    same = calibration(name).method == "identity"
    assert (np.abs(probabilities - answers["probabilities"]).max() <= 1e-6) == same
    kept = {tensor.name for tensor in onnx.load_from_string(content).graph.initializer}
    assert not kept & {"temperature", "prediction_set_threshold", "ood_threshold"}


@pytest.mark.slow
def test_each_model_is_told_in_a_line_a_batch(capsys: pytest.CaptureFixture[str]) -> None:
    """Two medians, and the median of the ratios, which is near theirs."""
    assert promised.main(["--turns", "3"]) == 0
    lines = [LINE.fullmatch(line) for line in capsys.readouterr().out.splitlines()]
    assert all(lines)
    told = [line.groups() for line in lines if line]
    assert [(name, int(batch)) for name, batch, *_ in told] == [(m, b) for m in MODELS for b in promised.BATCHES]
    for _, _, with_, without, ratio in told:
        assert float(with_) > 0
        assert float(without) > 0
        assert 0.3 < float(ratio) < 3


def test_a_turn_is_the_mean_of_many_runs() -> None:
    """Of what is given, in seconds."""
    runs: list[int] = []
    taken = promised.turn(lambda: runs.append(1))
    assert len(runs) > 10
    assert taken == pytest.approx(promised.TURN_S / len(runs), rel=0.5)
