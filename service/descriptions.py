"""What GET /v1/models tells of a served model."""

from typing import Any

from service.registry import ServedModel


def summarise(model: ServedModel) -> dict[str, Any]:
    """One line of the list of models."""
    after = model.bundle.calibration.metrics.after
    return {**_identity(model), "accuracy": after.accuracy, "ece_15": after.ece_15}


def describe(model: ServedModel) -> dict[str, Any]:
    """Everything there is to know of a model short of its files."""
    manifest, calibration = model.bundle.manifest, model.bundle.calibration
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
        "backend": {"name": model.backend_name, "device": model.backend.device},
        "training": manifest.training,
        "calibration": calibration.model_dump(
            mode="json", include={"id", "method", "params", "data", "metrics", "conformal", "ood"}
        ),
        "created_by": manifest.created_by,
    }


def _identity(model: ServedModel) -> dict[str, Any]:
    manifest = model.bundle.manifest
    return {
        "name": manifest.name,
        "version": manifest.version,
        "sha256": model.bundle.sha256,
        "labels": manifest.labels,
    }
