"""What GET /v1/models tells of a served model."""

from typing import Any

from service.documents import Calibration
from service.registry import ServedModel

SUMMARY = {"id", "method", "params", "data", "metrics", "conformal", "abstention", "ood"}
EVIDENCE = {"selection", "gates", "bins", "risk_coverage", "classes", "confusion", "created_by"}


def summarise(model: ServedModel) -> dict[str, Any]:
    """One line of the list of models."""
    found = model.bundle.calibration
    accuracy, ece_15 = (found.metrics.after.accuracy, found.metrics.after.ece_15) if found else (None, None)
    return {**_identity(model), "accuracy": accuracy, "ece_15": ece_15}


def describe(model: ServedModel) -> dict[str, Any]:
    """Everything there is to know of a model short of its files."""
    manifest = model.bundle.manifest
    return {
        **_identity(model),
        "input": {
            "kind": manifest.input.kind,
            "height": manifest.input.height,
            "width": manifest.input.width,
            "layout": "NHWC",
            "dtype": "uint8",
        },
        "files": manifest.files,
        "variant": manifest.variant.model_dump() if manifest.variant else None,
        "backend": {"name": model.backend_name, "device": model.backend.device},
        "training": manifest.training,
        "calibration": _of(model.bundle.calibration, SUMMARY),
        "created_by": manifest.created_by,
    }


def calibration(model: ServedModel) -> dict[str, Any]:
    """The evidence behind every number of an answer; see service.documents.Calibration."""
    return {**_identity(model), "calibration": _of(model.bundle.calibration, SUMMARY | EVIDENCE)}


def _of(found: Calibration | None, members: set[str]) -> dict[str, Any]:
    if found is None:
        return {"id": None, "method": "none"}
    document = found.model_dump(mode="json", include=members)
    if "conformal" in members:
        document["conformal"] = [
            {"coverage": level.coverage, **level.model_dump(mode="json")} for level in found.conformal
        ]
    return document


def _identity(model: ServedModel) -> dict[str, Any]:
    manifest = model.bundle.manifest
    return {
        "name": manifest.name,
        "version": manifest.version,
        "sha256": model.bundle.sha256,
        "labels": manifest.labels,
    }
