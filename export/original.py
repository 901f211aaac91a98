"""A served bundle that another one is to be made of."""

from pathlib import Path

import numpy as np

from export.calibrate import Strangeness
from export.gates import CalibrationError
from export.graph import Answering, CalibratedGraph
from export.parity import reference
from models.formats import DataError
from models.network import Network
from models.networks import load_network, untrained
from service.audit import GRAPH, probes
from service.backends import onnx as onnx_backend
from service.backends.agreement import LOGIT_TOLERANCE
from service.backends.initializers import initializers
from service.bundle import Bundle
from service.documents import Calibration
from service.images import Pixels

# Noise, beside the probes, on which the weights must answer as the bundle does.
COMPARED = 64
# Any answer will do where only logits are compared.
PLAIN = Answering("identity", {}, 1.0, "energy", 0.0)


def calibration_of(found: Bundle) -> Calibration:
    """Raises CalibrationError where there is none."""
    if found.calibration is None:
        raise CalibrationError(f"{found.directory} was never calibrated; export it with python -m export")
    return found.calibration


def strangeness_of(found: Bundle) -> Strangeness:
    """How it tells strange images. Raises CalibrationError where it cannot."""
    ood, arrays = calibration_of(found).ood, initializers((found.directory / GRAPH).read_bytes())
    return Strangeness(ood, {name: arrays[name] for name in ood.parameters_sha256})


def network_of(found: Bundle, weights: Path) -> Network:
    """Its network, which answers as the bundle does. Raises DataError where the weights are another's."""
    net = load_network(untrained(found.manifest.name), weights)
    graph = CalibratedGraph(net, found.manifest.input, PLAIN)
    pixels = compared(found)
    served = onnx_backend.load(found.directory, "cpu", 1, seal=found.seal).forward(pixels)
    gap = float(np.abs(reference(graph, pixels).logits - served.logits).max())
    if not gap <= LOGIT_TOLERANCE:
        raise DataError(
            f"the weights are not those of {found.directory} (logits differ by {gap:.1e}); name its own with --weights"
        )
    return net


def compared(found: Bundle) -> Pixels:
    """What weights and bundle must answer alike: (N, H, W, 3) uint8."""
    spec = found.manifest.input
    noise = np.random.default_rng(0).integers(0, 256, (COMPARED, spec.height, spec.width, 3), np.uint8)
    return np.concatenate((probes(spec.height, spec.width), noise))
