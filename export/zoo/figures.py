"""What must be measured of a network: how good its calibrated probabilities are, and how fast it answers."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from export import onnx
from export.calibrate import calibrated
from export.graph import Answering, CalibratedGraph
from export.nulls import nulls
from export.scoring import METRICS
from export.selection import Selection, select
from export.splits import observe
from models import weights_path
from models.networks import load_network
from models.task import zoo
from service import bundle
from service.backends import onnx as onnx_backend
from service.bundle import Bundle, digest
from service.calibration import Floats, Labels
from service.errors import BundleError
from service.images import InputSpec, Pixels

Forward: TypeAlias = Callable[[Pixels], object]

BATCH_SIZES = (1, 32)
# The fastest of so many rounds is taken: what else runs on the processor slows it down, nothing speeds it up.
ROUNDS, ROUND_S = 5, 0.3


@dataclass(frozen=True)
class Calibrated:
    """Of calibrated probabilities on the n images of the test set: accuracy and ECE-15 in [0, 1], NLL in nats.

    ece_15_null_p99: what the ECE of a perfectly calibrated model with the same probabilities exceeds once in 100 times.
    """

    n: int
    method: str
    accuracy: float
    nll: float
    ece_15: float
    ece_15_null_p99: float


@dataclass(frozen=True)
class Figures:
    """sha256: of the bundle's graph, or of the weights, that were measured. images_per_second: by batch size."""

    sha256: str
    calibrated: Calibrated
    images_per_second: dict[str, int]
    hardware: str
    runtime: str

    @classmethod
    def of(cls, document: dict[str, Any]) -> "Figures":
        """From what `dataclasses.asdict` made of them. Raises KeyError or TypeError."""
        return cls(**document | {"calibrated": Calibrated(**document["calibrated"])})


def current(name: str, bundles: Path) -> str:
    """The SHA-256 of what `measured` would measure. Raises BundleError or OSError."""
    found = _exported(name, bundles)
    return found.sha256 if found else digest(weights_path(name))


def measured(name: str, bundles: Path) -> Figures:
    """Of the newest bundle, whose calibration is taken as it is; where there is none, of the weights.

    These are calibrated as an export does it, on the images held back for that, but need not pass its gates. Raises
    BundleError, DataError, ValueError where no method can be fitted, or OSError.
    """
    found = _exported(name, bundles)
    return _of_bundle(found) if found else _of_weights(name)


def _exported(name: str, bundles: Path) -> Bundle | None:
    return bundle.discover(bundles, (name,))[name] if (bundles / name).is_dir() else None


def _of_bundle(found: Bundle) -> Figures:
    calibration = found.calibration
    if calibration is None:
        raise BundleError(f"{found.directory} has no calibration to tell of; export it again, with one.")
    after = calibration.metrics.after
    bound = calibration.metrics.null.ece_15_p99
    told = Calibrated(after.n, calibration.method, after.accuracy, after.nll, after.ece_15, bound)
    return _timed(found.directory, found.manifest.input, found.sha256, told)


def _of_weights(name: str) -> Figures:
    task, weights = zoo(name), weights_path(name)
    net = load_network(task.recipe.build(), weights)
    held = observe(net, task).held
    selection = select(held.fit.logits, held.fit.labels)
    told = _calibrated(selection, held.eval.logits, held.eval.labels)
    # Thresholds of any size take the same time.
    answering = Answering(selection.chosen, selection.params, 0.5, "energy", 0.0)
    with tempfile.TemporaryDirectory() as folder:
        graph = CalibratedGraph(net, task.spec, answering).eval()
        onnx.write(graph, task.spec, Path(folder) / onnx_backend.FILE)
        return _timed(Path(folder), task.spec, digest(weights), told)


def _calibrated(selection: Selection, logits: Floats, labels: Labels) -> Calibrated:
    p = np.minimum(calibrated(selection, logits), 1)
    nll, ece = (float(METRICS[metric](p, labels[None])[0]) for metric in ("nll", "ece_15"))
    bound = nulls(p, {"ece_15": METRICS["ece_15"]})["ece_15"].p99
    return Calibrated(len(labels), selection.chosen, float((p.argmax(1) == labels).mean()), nll, ece, bound)


def _timed(folder: Path, spec: InputSpec, sha256: str, told: Calibrated) -> Figures:
    backend = onnx_backend.load(folder, "cpu", 1)
    rates = {str(size): images_per_second(backend.forward, spec, size) for size in BATCH_SIZES}
    return Figures(sha256, told, rates, backend.placement.hardware, backend.placement.runtime)


def images_per_second(forward: Forward, spec: InputSpec, batch_size: int) -> int:
    """Of this process's time: what others do on the same cores does not count."""
    pixels = np.random.default_rng(0).integers(0, 256, (batch_size, spec.height, spec.width, 3), np.uint8)
    forward(pixels)
    return round(max(batch_size * _forwards_per_second(forward, pixels) for _ in range(ROUNDS)))


def _forwards_per_second(forward: Forward, pixels: Pixels) -> float:
    started, forwards, passed = time.process_time(), 0, 0.0
    while passed < ROUND_S:
        forward(pixels)
        forwards += 1
        passed = time.process_time() - started
    return forwards / passed
