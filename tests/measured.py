"""Bundles whose answers are drawn at random and whose figures are measured on them, as those of an export are."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from export.evidence import measure
from service import calibrators
from service.audit import TEST_VECTORS, calibration_id, preprocessing_digest
from service.bundle import digest
from service.documents import Calibration, Manifest
from service.images import InputSpec

LABELS = ("ant", "bee | wasp", "<cat>", "$dog$")
SPEC = InputSpec("photo", 8, 16, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
PARAMS: dict[str, dict[str, Any]] = {
    "identity": {},
    "map_temperature": {"temperature": 2.5},
    "isotonic_pooled": {"temperature": 2.5, "knots": [0.0, 0.4, 1.0], "values": [0.0, 0.41, 1.0]},
}
SPLITS = ("fit", "conformal", "eval")


@cache
def calibration(method: str = "map_temperature", images: int = 800, labels: tuple[str, ...] = LABELS) -> Calibration:
    """What is to be said of logits that are too sure by a factor of 2.5, of a graph that is given later."""
    rng = np.random.default_rng(images)
    truth = rng.integers(0, len(labels), images)
    # Whose posterior is the softmax of twice that.
    seen = rng.normal(size=(images, len(labels))) + 2 * np.eye(len(labels))[truth]
    logits = 2 * seen * 2.5
    raw = calibrators.probabilities("identity", logits, {})
    found = calibrators.probabilities(method, logits, PARAMS[method])
    evidence = measure(raw, found, truth, list(labels))
    document = {
        "schema_version": 2,
        "id": "sha256:" + "0" * 64,
        "model_sha256": "0" * 64,
        "labels": labels,
        "input": {"kind": "logits", "preprocessing_sha256": preprocessing_digest(SPEC)},
        "method": method,
        "params": PARAMS[method],
        "selection": {
            "candidates": ["map_temperature", "isotonic_pooled"],
            "cv_nll": {"map_temperature": 0.412345, "isotonic_pooled": 0.401234},
            "se": {"map_temperature": 0.0, "isotonic_pooled": 0.002345},
            "chosen": method,
            "seed": 3,
            "folds": 5,
        },
        "gates": [
            {"name": "nll", "value": -0.01234, "bound": 0.0, "passed": True},
            {"name": "ece_15", "value": 0.01357, "bound": 0.02468, "passed": True},
            {"name": "argmax", "value": 17.0, "bound": None, "passed": True},
        ],
        "data": {
            split: {"n": 1711 + i, "n_errors": 37 + i, "index_sha256": str(i) * 64} for i, split in enumerate(SPLITS)
        },
        **vars(evidence),
        "conformal": [
            {"alpha": 0.05, "threshold": 0.31416, "n": 1712},
            {"alpha": 0.001, "threshold": 0.02718, "n": 1712},
        ],
        "abstention": {
            "risk": 0.021,
            "threshold": 0.61803,
            "delta": 0.05,
            "coverage": 0.8765,
            "risk_bound": 0.0198,
            "n": 1712,
        },
        "ood": {"method": "energy", "threshold": -3.14159, "id_tpr": 0.985},
        "created_by": {"python": "3.11.7"},
        "test_vectors": [
            {"logits": row.tolist(), "probabilities": p.tolist()}
            for row, p in zip(logits[:TEST_VECTORS], found[:TEST_VECTORS], strict=True)
        ],
    }
    return Calibration.model_validate(document)


def manifest(root: Path, **training: Any) -> Manifest:
    """Of the bundle in this folder, naming no file yet."""
    return Manifest(
        schema_version=1,
        name=root.parent.name,
        version=root.name,
        labels=list(LABELS),
        input=SPEC,
        files={},
        training={"seed": 11, "minutes": 12.5, "wörtlich": [{"anything": None}]} | training,
        created_by={"python": "3.11.7"},
    )


def write_bundle(root: Path, name: str = "pets", version: str = "1", method: str = "map_temperature") -> Path:
    """A bundle that loads, with a card that is none and no pictures."""
    directory = root / name / version
    directory.mkdir(parents=True)
    found = calibration(method)
    _write_graph(directory / "model.onnx", found)
    found = found.model_copy(update={"model_sha256": digest(directory / "model.onnx")})
    found = found.model_copy(update={"id": calibration_id(found.model_dump(mode="json"))})
    (directory / "calibration.json").write_text(found.model_dump_json())
    (directory / "MODEL_CARD.md").write_text("# Pets\n")
    files = {path.name: digest(path) for path in sorted(directory.iterdir())}
    document = manifest(directory).model_copy(update={"files": files}).model_dump(mode="json")
    (directory / "manifest.json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    return directory


def _write_graph(path: Path, found: Calibration) -> None:
    """Which is none, but for the parameters in it."""
    arrays = calibrators.initializers(found.method, found.params)
    arrays["prediction_set_threshold"] = np.array(found.conformal[0].threshold, np.float32)
    arrays["ood_threshold"] = np.array(found.ood.threshold, np.float32)
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    onnx.save(helper.make_model(helper.make_graph([], "none", [], [], tensors)), path)
