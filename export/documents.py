"""What a bundle says of itself: calibration.json, its card with pictures and, last, the manifest vouching for all."""

import json
import platform
from dataclasses import dataclass
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime

from export.calibrate import Fitted
from export.cards import digests, made_of
from export.evidence import measure
from export.splits import HeldOut, Tested
from service.audit import TEST_VECTORS, calibration_id, preprocessing_digest
from service.backends import onnx as onnx_backend
from service.bundle import CALIBRATION, MANIFEST, digest
from service.calibration import softmax
from service.documents import Calibration, CalibrationInput, Gate, Manifest, Method, Ood, TestVector, Variant
from service.documents import Selection as Selected
from service.images import InputSpec

PACKAGES = ("torch", "onnx", "onnxscript", "numpy", "pillow")


@dataclass(frozen=True)
class Export:
    """What is known of a model when its forms have been written.

    tested: what they answer to the images of held.eval. training is the record of the training run.
    """

    name: str
    version: str
    labels: list[str]
    input: InputSpec
    held: HeldOut
    tested: Tested
    fitted: Fitted
    ood: Ood
    training: dict[str, Any]
    variant: Variant | None = None


def write_documents(directory: Path, export: Export) -> None:
    """Describe the exported forms that lie in `directory`."""
    calibration = _calibration(directory, export)
    write_json(directory / CALIBRATION, calibration.model_dump(mode="json"))
    manifest = Manifest(
        schema_version=1,
        name=export.name,
        version=export.version,
        labels=export.labels,
        input=export.input,
        files={path.name: digest(path) for path in sorted(directory.iterdir())},
        training={key: value for key, value in export.training.items() if key != "history"},
        created_by=_versions(),
        variant=export.variant,
    )
    made = made_of(directory, manifest, calibration)
    for name, content in made.items():
        (directory / name).write_bytes(content)
    # The manifest vouches for every other file, so it is written last.
    vouching = manifest.model_copy(update={"files": digests(manifest.files, made)})
    write_json(directory / MANIFEST, vouching.model_dump(mode="json"))


def _calibration(directory: Path, export: Export) -> Calibration:
    held, fitted, answers = export.held, export.fitted, export.tested
    evidence = measure(softmax(answers.logits), answers.probabilities, held.eval.labels, export.labels)
    chosen = np.linspace(0, len(answers.logits) - 1, TEST_VECTORS).astype(int)
    selection = fitted.selection
    calibration = Calibration(
        id="sha256:" + "0" * 64,
        model_sha256=digest(directory / onnx_backend.FILE),
        labels=export.labels,
        input=CalibrationInput(kind="logits", preprocessing_sha256=preprocessing_digest(export.input)),
        method=cast("Method", selection.chosen),
        params={name: np.asarray(value).tolist() for name, value in selection.params.items()},
        selection=Selected(
            candidates=list(selection.candidates),
            cv_nll=selection.cv_nll,
            se=selection.se,
            chosen=selection.chosen,
            seed=selection.seed,
            folds=selection.folds,
        ),
        gates=[
            Gate(
                name=gate.name,
                value=gate.figure,
                bound=gate.bound if np.isfinite(gate.bound) else None,
                passed=gate.passed,
            )
            for gate in fitted.verdicts
        ],
        data={"fit": held.fit.record(), "conformal": held.conformal.record(), "eval": held.eval.record()},
        **vars(evidence),
        conformal=fitted.conformal,
        abstention=fitted.abstention,
        ood=export.ood,
        created_by=_versions(),
        test_vectors=[
            TestVector(logits=answers.logits[i].tolist(), probabilities=answers.probabilities[i].tolist())
            for i in chosen
        ],
    )
    return calibration.model_copy(update={"id": calibration_id(calibration.model_dump(mode="json"))})


def _versions() -> dict[str, str]:
    # ONNX Runtime tells itself: its package has another name where it is the GPU build.
    versions = {"python": platform.python_version(), "onnxruntime": onnxruntime.__version__}
    return versions | {package: installed(package) for package in PACKAGES}


def write_json(path: Path, document: dict[str, Any]) -> None:
    """As people read it."""
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
