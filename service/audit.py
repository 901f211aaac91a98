"""Whether a calibration can be believed: what it claims is checked against itself, the manifest and the graph."""

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError

from service import calibrators
from service.backends import Outputs
from service.calibration import energy, kl_uniform
from service.documents import PARAMS, Calibration, Manifest
from service.files import sha256
from service.images import InputSpec, Pixels

GRAPH = "model.onnx"
# Of a probability.
TOLERANCE = 1e-5
# In nats.
ENERGY_TOLERANCE = 1e-4
TEST_VECTORS = 32
Arrays = Mapping[str, npt.NDArray[np.float32]]


def complaint(manifest: Manifest, calibration: Calibration, graph: Arrays) -> str | None:
    """Why this calibration must not be served; `graph` are the float weights of the exported graph by their names."""
    # In this order, for what follows reckons with what went before; each is asked for its first complaint only.
    checks = (
        _of_the_document(manifest, calibration),
        _of_the_parameters(calibration),
        _of_the_promises(calibration),
        _of_the_graph(calibration, graph),
    )
    return next(itertools.chain.from_iterable(checks), None)


def disagreement(answers: Outputs, calibration: Calibration) -> str | None:
    """In what a graph answers otherwise than its calibration says; None where it keeps to it."""
    return next(_disagreements(answers, calibration), None)


def probes(height: int, width: int) -> Pixels:
    """Images (6, H, W, 3) by whose answers a graph is judged: blocks of random colour, large and small, bold and faint.

    A network is sure of some and unsure of others. Of noise it may be so sure, or know so well that it is nothing, that
    no temperature would be noticed.
    """
    rng = np.random.default_rng(0)

    def blocks(cells: int, contrast: float) -> npt.NDArray[np.float64]:
        colours = 127.5 + contrast * rng.uniform(-127.5, 127.5, (cells, cells, 3))
        return colours[np.arange(height) * cells // height][:, np.arange(width) * cells // width]

    return np.stack([blocks(cells, contrast) for cells in (2, 4, 8) for contrast in (1.0, 0.3)]).astype(np.uint8)


def canonical_digest(document: Any) -> str:
    """SHA-256 of a JSON document, whatever its layout."""
    return sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode())


def calibration_id(document: Mapping[str, Any]) -> str:
    """The id of a calibration document, computed from everything in it but the id."""
    return "sha256:" + canonical_digest({key: value for key, value in document.items() if key != "id"})


def preprocessing_digest(spec: InputSpec) -> str:
    """Names the way from picture to pixels that a calibration was fitted behind."""
    return canonical_digest(TypeAdapter(InputSpec).dump_python(spec, mode="json"))


def array_digest(array: npt.NDArray[np.float32]) -> str:
    """SHA-256 of an array's little-endian bytes, in C order."""
    return sha256(np.ascontiguousarray(array, "<f4").tobytes())


def _disagreements(answers: Outputs, calibration: Calibration) -> Iterator[str]:
    logits = answers.logits.astype(np.float64)
    expected = calibrators.probabilities(calibration.method, logits, calibration.params)
    # Not "gap > tolerance", which a NaN would pass.
    if not np.abs(expected - answers.probabilities).max() <= TOLERANCE:
        yield f"its probabilities are not what {calibration.method} makes of its logits"
    least = np.minimum(np.float32(calibration.conformal[0].threshold), answers.probabilities.max(1, keepdims=True))
    if not np.array_equal(answers.prediction_set, answers.probabilities >= least):
        yield "its prediction sets are not those of its threshold"
    if not np.allclose(answers.energy, energy(logits), rtol=1e-5, atol=ENERGY_TOLERANCE):
        yield "its energy is not that of its logits"
    if calibration.ood.method == "energy" and not np.array_equal(answers.ood_score, answers.energy):
        yield "its score of strangeness is not its energy"
    if calibration.ood.method == "kl_uniform" and not np.allclose(
        answers.ood_score, kl_uniform(logits), rtol=1e-5, atol=ENERGY_TOLERANCE
    ):
        yield "its score of strangeness is not how even its probabilities are"
    if not np.isfinite(answers.ood_score).all():
        yield "its scores of strangeness are no numbers"
    if not np.array_equal(answers.is_ood, answers.ood_score > np.float32(calibration.ood.threshold)):
        yield "its flag is not that of its threshold"


def _of_the_document(manifest: Manifest, calibration: Calibration) -> Iterator[str]:
    if calibration.id != calibration_id(calibration.model_dump(mode="json")):
        yield "the id does not match the content"
    if manifest.files.get(GRAPH) != calibration.model_sha256:
        yield f"it belongs to another {GRAPH}"
    if manifest.labels != calibration.labels:
        yield "its labels are not the manifest's"
    if calibration.input.preprocessing_sha256 != preprocessing_digest(manifest.input):
        yield "it was fitted behind other preprocessing"
    if set(calibration.data) != {"fit", "conformal", "eval"}:
        yield "it does not name its three splits"
    if len({split.index_sha256 for split in calibration.data.values()}) < len(calibration.data):
        yield "it does not tell its splits apart: what it was fitted on is what it was measured on"


def _of_the_parameters(calibration: Calibration) -> Iterator[str]:
    try:
        PARAMS[calibration.method].model_validate(calibration.params)
    except ValidationError as error:
        first = error.errors()[0]
        yield f"its {'.'.join(map(str, first['loc'])) or 'parameters'} cannot be ({first['msg']})"
        return
    params, classes = calibration.params, len(calibration.labels)
    if calibration.method == "vector" and {len(_list(params[name])) for name in ("weights", "biases")} != {classes}:
        yield "it has not a weight and a bias for each class"
    if calibration.method == "isotonic_pooled":
        knots, values = (_list(params[name]) for name in ("knots", "values"))
        if not (
            len(knots) == len(values)
            and _rises(knots)
            and _rises(values)
            and (knots[0], values[0], knots[-1]) == (0, 0, 1)
        ):
            yield "its map does not rise from 0 at 0 to the end at 1"


def _of_the_promises(calibration: Calibration) -> Iterator[str]:
    for level in calibration.conformal:
        if math.ceil((level.n + 1) * (1 - level.alpha)) > level.n:
            yield f"it has too few images for the coverage {level.coverage:g} it names"
    if len({level.coverage for level in calibration.conformal}) < len(calibration.conformal):
        yield "it names a coverage twice"
    failed = [gate.name for gate in calibration.gates if not gate.passed]
    if failed:
        yield f"it has not passed its gates ({', '.join(failed)})"
    if not _vectors_hold(calibration):
        yield f"its test vectors are not {TEST_VECTORS} that its parameters reproduce"


def _of_the_graph(calibration: Calibration, graph: Arrays) -> Iterator[str]:
    expected = calibrators.initializers(calibration.method, calibration.params)
    expected["prediction_set_threshold"] = np.array(calibration.conformal[0].threshold, np.float32)
    expected["ood_threshold"] = np.array(calibration.ood.threshold, np.float32)
    for name, value in expected.items():
        if name not in graph:
            yield f"{GRAPH} has no {name}"
        elif not np.array_equal(graph[name].ravel(), np.ravel(value)):
            yield f"the {name} in {GRAPH} is another"
    for name, digest in calibration.ood.parameters_sha256.items():
        if name not in graph or array_digest(graph[name]) != digest:
            yield f"the {name} in {GRAPH} is another"


def _vectors_hold(calibration: Calibration) -> bool:
    """Whether each test vector's probabilities follow from its logits to 1e-5 and sum to 1."""
    vectors, width = calibration.test_vectors, len(calibration.labels)
    if len(vectors) != TEST_VECTORS:
        return False
    if any({len(vector.logits), len(vector.probabilities)} != {width} for vector in vectors):
        return False
    logits = np.array([vector.logits for vector in vectors])
    told = np.array([vector.probabilities for vector in vectors])
    expected = calibrators.probabilities(calibration.method, logits, calibration.params)
    return np.allclose(told, expected, rtol=0, atol=TOLERANCE) and np.allclose(told.sum(1), 1, rtol=0, atol=TOLERANCE)


def _list(value: float | list[float]) -> list[float]:
    return value if isinstance(value, list) else [value]


def _rises(values: list[float]) -> bool:
    return all(low < high for low, high in itertools.pairwise(values))
