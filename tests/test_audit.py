"""service.audit: a graph that does not answer as its calibration says is noticed, however well it was forged.

What a calibration may not say is tested in test_bundle.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from service import bundle, calibrators
from service.audit import calibration_id, disagreement, probes
from service.backends import Outputs
from service.backends import onnx as onnx_backend
from service.backends import torchscript as torchscript_backend
from service.backends.torchscript import deprecation_known
from service.bundle import digest
from service.calibration import energy
from service.documents import Calibration
from service.settings import BUNDLES
from tests.conftest import ROOT, calibration, environment, free_port
from tests.test_bundle import calibration_document, sha256

Forge = Callable[[Path], None]

LOGITS = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32) * 4
OOD_THRESHOLD = float(np.float32(np.median(energy(LOGITS))))


def documented(**others: Any) -> Calibration:
    document = calibration_document(**others)
    document["ood"]["threshold"] = OOD_THRESHOLD
    return Calibration.model_validate(document)


def answers(of: Calibration) -> Outputs:
    """As a sound graph gives them, in float32."""
    wide = LOGITS.astype(np.float64)
    p = calibrators.probabilities(of.method, wide, of.params).astype(np.float32)
    least = np.minimum(np.float32(of.conformal[0].threshold), p.max(1, keepdims=True))
    score = energy(wide).astype(np.float32)
    return Outputs(LOGITS, p, p >= least, score, score > np.float32(of.ood.threshold), score)


SOUND = documented()
ANSWERS = answers(SOUND)


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("identity", {}),
        ("map_temperature", {"temperature": 1.5}),
        ("beta_pooled", {"temperature": 1.5, "a": 1.2, "b": 0.8, "c": 0.1}),
        ("isotonic_pooled", {"temperature": 1.5, "knots": [0.0, 0.25, 1.0], "values": [0.0, 0.5, 1.0]}),
        ("vector", {"weights": [1.0, 0.9, 1.1], "biases": [0.0, 0.1, -0.1]}),
    ],
)
def test_a_sound_graph_is_not_complained_of(method: str, params: dict[str, Any]) -> None:
    """Whatever its method; and one image alone."""
    of = documented(method=method, params=params)
    assert disagreement(answers(of), of) is None
    assert disagreement(answers(of).split([1])[0], of) is None


@pytest.mark.parametrize("temperature", [1.499, 1.501, 1.0, 20.0])
def test_another_temperature_is_noticed(temperature: float) -> None:
    """A thousandth is enough."""
    of = documented(params={"temperature": temperature})
    assert "not what map_temperature makes of its logits" in str(disagreement(ANSWERS, of))


def test_another_threshold_of_sets_is_noticed() -> None:
    """Where it makes a difference to any set."""
    p = np.sort(ANSWERS.probabilities.ravel())
    moved = ANSWERS.probabilities >= np.minimum(
        np.float32(p[p > 0.4][0]) + np.float32(1e-6), ANSWERS.probabilities.max(1, keepdims=True)
    )
    assert (moved != ANSWERS.prediction_set).sum() == 1
    assert "prediction sets" in str(disagreement(replace(ANSWERS, prediction_set=moved), SOUND))


def test_an_empty_set_is_noticed() -> None:
    """The likeliest label always belongs to it."""
    bare = ANSWERS.probabilities >= np.float32(0.4)
    assert not bare.any(1).all()
    assert "prediction sets" in str(disagreement(replace(ANSWERS, prediction_set=bare), SOUND))


@pytest.mark.parametrize("direction", [-np.inf, np.inf])
def test_another_threshold_of_strangeness_is_noticed(direction: float) -> None:
    """By the smallest step past any score."""
    scores = np.sort(ANSWERS.ood_score)
    if direction > 0:
        threshold = float(scores[scores > np.float32(OOD_THRESHOLD)][0])
    else:
        threshold = float(np.nextafter(scores[scores <= np.float32(OOD_THRESHOLD)][-1], np.float32(-np.inf)))
    of = SOUND.model_copy(update={"ood": SOUND.ood.model_copy(update={"threshold": threshold})})
    assert "flag is not that of its threshold" in str(disagreement(ANSWERS, of))


@pytest.mark.parametrize("output", ["logits", "probabilities", "energy", "ood_score"])
def test_what_is_no_number_is_noticed(output: str) -> None:
    """One among many, in any output: it compares with nothing."""
    for odd in (np.nan, np.inf):
        changed = getattr(ANSWERS, output).copy()
        changed.flat[5] = odd
        with np.errstate(invalid="ignore"):
            assert disagreement(replace(ANSWERS, **{output: changed}), SOUND)


def test_no_number_is_noticed_though_flags_go_with_it() -> None:
    """As a graph gives them that overflows: comparisons with it are false."""
    p, members = ANSWERS.probabilities.copy(), ANSWERS.prediction_set.copy()
    p[5], members[5] = np.nan, False
    found = disagreement(replace(ANSWERS, probabilities=p, prediction_set=members), SOUND)
    assert "not what map_temperature makes of its logits" in str(found)


@pytest.mark.parametrize("output", ["prediction_set", "is_ood"])
@pytest.mark.parametrize("at", [0, -1])
def test_one_flag_is_enough(output: str, at: int) -> None:
    """Turned over, the first or the last."""
    changed = getattr(ANSWERS, output).copy()
    changed.flat[at] = not changed.flat[at]
    assert disagreement(replace(ANSWERS, **{output: changed}), SOUND)


def test_a_score_of_another_s_making_is_noticed() -> None:
    """With flags to go with it: no image would be strange any more."""
    calm = np.full_like(ANSWERS.energy, -1000)
    none = np.zeros_like(ANSWERS.is_ood)
    assert "energy" in str(disagreement(replace(ANSWERS, energy=calm, ood_score=calm, is_ood=none), SOUND))
    assert "not its energy" in str(disagreement(replace(ANSWERS, ood_score=calm, is_ood=none), SOUND))


def test_a_score_is_how_even_the_probabilities_are() -> None:
    """Where the document says so; one image less strange by a little is noticed."""
    score = torch.log_softmax(torch.from_numpy(ANSWERS.logits), 1).mean(1).numpy()
    of = SOUND.model_copy(update={"ood": SOUND.ood.model_copy(update={"method": "kl_uniform", "threshold": -4.0})})
    assert disagreement(replace(ANSWERS, ood_score=score, is_ood=score > -4), of) is None
    forged = score.copy()
    forged[5] -= 0.1
    assert "how even" in str(disagreement(replace(ANSWERS, ood_score=forged, is_ood=forged > -4), of))


def test_a_score_of_another_method_is_its_own() -> None:
    """Not the energy, and compared with the threshold all the same."""
    of = SOUND.model_copy(update={"ood": SOUND.ood.model_copy(update={"method": "vim", "threshold": 1.0})})
    score = np.linspace(0, 2, len(LOGITS), dtype=np.float32)
    assert disagreement(replace(ANSWERS, ood_score=score, is_ood=score > 1), of) is None
    assert disagreement(replace(ANSWERS, ood_score=score, is_ood=score > 1.1), of)
    score[3] = np.nan
    assert disagreement(replace(ANSWERS, ood_score=score, is_ood=score > 1), of)


def renew(directory: Path) -> None:
    """Digests, model_sha256 and id, as one who knows them all would."""
    path = directory / bundle.CALIBRATION
    document = json.loads(path.read_text())
    document["model_sha256"] = digest(directory / onnx_backend.FILE)
    path.write_text(json.dumps(document | {"id": calibration_id(document)}))
    manifest = json.loads((directory / bundle.MANIFEST).read_text())
    manifest["files"] = {name: digest(directory / name) for name in manifest["files"]}
    (directory / bundle.MANIFEST).write_text(json.dumps(manifest))


def forging(edit: Callable[[onnx.ModelProto], None]) -> Forge:
    def forge(directory: Path) -> None:
        model = onnx.load(directory / onnx_backend.FILE)
        edit(model)
        onnx.save(model, directory / onnx_backend.FILE)
        renew(directory)

    return forge


def initializer(name: str, value: float) -> Forge:
    def edit(model: onnx.ModelProto) -> None:
        found = next(each for each in model.graph.initializer if each.name == name)
        found.CopyFrom(numpy_helper.from_array(np.full(tuple(found.dims), value, np.float32), name))

    return forging(edit)


def sharpen(model: onnx.ModelProto) -> None:
    """Between the logits and what divides them by the temperature, which stays as it is."""
    model.graph.initializer.append(numpy_helper.from_array(np.array(3.0, np.float32), "sharper"))
    at, node = next((i, node) for i, node in enumerate(model.graph.node) if "temperature" in node.input)
    model.graph.node.insert(at, helper.make_node("Mul", [node.input[0], "sharper"], ["sharp"]))
    node.input[0] = "sharp"


def shadow(model: onnx.ModelProto) -> None:
    """A constant of the same name, which ONNX Runtime prefers."""
    value = numpy_helper.from_array(np.array(0.3, np.float32))
    model.graph.node.insert(0, helper.make_node("Constant", [], ["temperature"], value=value))


def calm(model: onnx.ModelProto) -> None:
    """Nothing is strange any more: the score is a thousand less."""
    model.graph.initializer.append(numpy_helper.from_array(np.array(1000.0, np.float32), "calm"))
    at, node = next((i, node) for i, node in enumerate(model.graph.node) if "ood_score" in node.output)
    node.output[list(node.output).index("ood_score")] = "excited"
    model.graph.node.insert(at + 1, helper.make_node("Sub", ["excited", "calm"], ["ood_score"]))
    for other in model.graph.node[at + 2 :]:
        for place, name in enumerate(other.input):
            if name == "ood_score":
                other.input[place] = "excited"


def started(root: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """`python -m service` until it ends, which it must."""
    command = [sys.executable, "-m", "service", "--port", str(free_port())]
    ours = {"TRUEODDS_BUNDLES": str(root), "TRUEODDS_WORKERS": "1", **settings}
    return subprocess.run(
        command,
        cwd=ROOT,
        env=environment(root / ".home", ours),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("name", [path.name for path in sorted(BUNDLES.iterdir())])
def test_the_probes_leave_every_committed_network_in_some_doubt(name: str) -> None:
    """So that another temperature would show: neither certain of one class nor even among all."""
    found = bundle.discover(BUNDLES, (name,))[name]
    spec = found.manifest.input
    p = onnx_backend.load(found.directory, "cpu", 1).forward(probes(spec.height, spec.width)).probabilities
    sharper = p**2 / (p**2).sum(1, keepdims=True)
    assert np.abs(sharper - p).max() > 0.01


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of a committed bundle."""
    source = bundle.discover(BUNDLES, (CALIBRATED,))[CALIBRATED].directory
    return Path(shutil.copytree(source, tmp_path / CALIBRATED / source.name))


# Whose calibration has parameters to be forged.
CALIBRATED = "cifar10"
METHOD = calibration(CALIBRATED).method
TEMPERATURE = float(calibration(CALIBRATED).params["temperature"])  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("forge", "reason"),
    [
        (initializer("temperature", TEMPERATURE * 0.5), "the temperature in model.onnx is another"),
        (initializer("prediction_set_threshold", 0.5), "the prediction_set_threshold in model.onnx is another"),
        (initializer("ood_threshold", 1e6), "the ood_threshold in model.onnx is another"),
        (forging(sharpen), f"its probabilities are not what {METHOD} makes of its logits"),
        (forging(shadow), f"its probabilities are not what {METHOD} makes of its logits"),
        (forging(calm), "its score of strangeness is not its energy"),
    ],
    ids=["temperature", "sets", "strangeness", "sharpened", "shadowed", "calmed"],
)
def test_a_service_whose_graph_was_forged_does_not_start(copied: Path, forge: Forge, reason: str) -> None:
    """Though digests and ids are in order; it says what is wrong in a line that names the bundle, and no traceback."""
    forge(copied)
    ended = started(copied.parent.parent)
    told = ended.stdout + ended.stderr
    assert ended.returncode not in (0, None), told
    assert reason in told
    assert str(copied) in told
    assert "Traceback" not in told


@pytest.mark.slow
def test_a_service_whose_other_form_was_forged_does_not_start(copied: Path) -> None:
    """TorchScript, which nothing is read from before it runs, with another temperature; pinned, so that it is run."""
    path = copied / torchscript_backend.FILE
    with deprecation_known():
        module = torch.jit.load(path)
        with torch.no_grad():
            dict(module.named_buffers())["temperature"].fill_(TEMPERATURE * 0.5)
        torch.jit.save(module, path)
    renew(copied)
    pin = f"{CALIBRATED}/{copied.name}@sha256:{digest(copied / bundle.MANIFEST)}"
    ended = started(copied.parent.parent, TRUEODDS_BACKEND="torchscript", TRUEODDS_PINNED=pin)
    told = ended.stdout + ended.stderr
    assert ended.returncode not in (0, None), told
    assert f"{copied} does not keep to its calibration: its probabilities are not what {METHOD} makes" in told
    assert "Traceback" not in told


def document_with(*path: str | int, to: Any, renewed: bool = True) -> Forge:
    def forge(directory: Path) -> None:
        file = directory / bundle.CALIBRATION
        document = json.loads(file.read_text())
        place = document
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = to
        file.write_text(json.dumps(document))
        if renewed:
            renew(directory)
            return
        manifest = json.loads((directory / bundle.MANIFEST).read_text())
        manifest["files"][bundle.CALIBRATION] = sha256(file.read_bytes())
        (directory / bundle.MANIFEST).write_text(json.dumps(manifest))

    return forge


@pytest.mark.slow
@pytest.mark.parametrize(
    ("forge", "reason"),
    [
        (document_with("params", "temperature", to=TEMPERATURE * 0.5), "its test vectors are not 32"),
        (document_with("conformal", 0, "threshold", to=0.5), "the prediction_set_threshold in model.onnx is another"),
        (document_with("metrics", "after", "ece_15", to=0.0001, renewed=False), "the id does not match the content"),
    ],
    ids=["temperature", "sets", "figure"],
)
def test_a_service_whose_calibration_was_edited_does_not_start(copied: Path, forge: Forge, reason: str) -> None:
    """The document and the graph vouch for each other, the id for the document."""
    forge(copied)
    ended = started(copied.parent.parent)
    told = ended.stdout + ended.stderr
    assert ended.returncode not in (0, None), told
    assert reason in told
    assert str(copied / bundle.CALIBRATION) in told
    assert "Traceback" not in told
