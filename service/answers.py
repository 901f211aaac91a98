"""What a client reads: outputs of the graph → the result objects of a response."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from service.backends import Outputs
from service.bundle import Bundle
from service.calibration import softmax


@dataclass(frozen=True)
class Options:
    """What a client may ask for. top_k None means every class."""

    top_k: int | None = 3
    logits: bool = False


class Answers:
    """Turns a model's outputs into result objects. All that is the same in every one is made once."""

    def __init__(self, bundle: Bundle) -> None:
        manifest, calibration = bundle.manifest, bundle.calibration
        self._labels = manifest.labels
        self._model = {"name": manifest.name, "version": manifest.version, "sha256": bundle.sha256}
        served = calibration.conformal[0]
        self._set = {"coverage": round(1 - served.alpha, 6), "method": "lac"}
        self._ood = {"method": calibration.ood.method, "threshold": calibration.ood.threshold}
        self._calibration = {
            "id": calibration.id,
            "method": calibration.method,
            "ece_15": calibration.metrics.after.ece_15,
            "ece_null_p99": calibration.metrics.null.ece_15_p99,
            "n_fit": calibration.data["fit"].n,
        }

    def results(self, outputs: Outputs, options: Options, request_id: str) -> list[dict[str, Any]]:
        """A result object for each of N images. Values are numpy scalars; encode with OPT_SERIALIZE_NUMPY."""
        uncalibrated = softmax(outputs.logits)
        # By logits: probabilities of the tail tie at 0.
        order = np.argsort(-outputs.logits, axis=1, kind="stable")[:, : options.top_k].tolist()
        return [
            self._result(outputs, uncalibrated, i, order[i], options, request_id) for i in range(len(outputs.logits))
        ]

    def _result(
        self, outputs: Outputs, uncalibrated: Any, i: int, top: list[int], options: Options, request_id: str
    ) -> dict[str, Any]:
        members = np.flatnonzero(outputs.prediction_set[i]).tolist()
        is_ood = bool(outputs.is_ood[i])
        result = {
            "request_id": request_id,
            "model": self._model,
            "predictions": [
                {
                    "label": self._labels[k],
                    "class_index": k,
                    "probability": outputs.probabilities[i, k],
                    "uncalibrated_probability": uncalibrated[i, k],
                }
                for k in top
            ],
            "prediction_set": {"labels": [self._labels[k] for k in members], **self._set},
            # More than one label is possible, or the promise does not hold for such an image: let a person look.
            "abstain": is_ood or len(members) > 1,
            "ood": {"score": outputs.energy[i], "is_ood": is_ood, **self._ood},
            "calibration": {**self._calibration, "valid_for": None if is_ood else "in_distribution"},
        }
        if options.logits:
            result["logits"] = outputs.logits[i]
        return result
