"""The network as it is deployed: pixels in, calibrated answer out, in any runtime."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from export import calibrators, strangeness
from models.network import Network
from service.calibrators import Params, initializers
from service.images import InputSpec

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Answering:
    """How a graph answers: the calibration, the prediction set and what is strange, by their parameters.

    ood_params are arrays by the names that `export.strangeness` gives them.
    """

    method: str
    params: Params
    set_threshold: float
    ood_method: str
    ood_threshold: float
    ood_params: Mapping[str, Array] = field(default_factory=dict)

    def buffers(self) -> dict[str, Array]:
        """Every parameter by its name in the graph."""
        return {
            **initializers(self.method, self.params),
            **self.ood_params,
            "prediction_set_threshold": np.array(self.set_threshold, np.float32),
            "ood_threshold": np.array(self.ood_threshold, np.float32),
        }


class CalibratedGraph(nn.Module):
    """(N, H, W, 3) uint8 → the outputs of service.backends.Outputs, in their order.

    Normalisation and calibration are part of it, their parameters named buffers.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: Network, spec: InputSpec, answering: Answering) -> None:
        super().__init__()
        self.net = net
        # 255 is folded in, so that standardising is one subtraction and one division.
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(spec.std).view(1, 3, 1, 1) * 255)
        self._calibrate = calibrators.METHODS[answering.method]
        self._score = strangeness.SCORES[answering.ood_method]
        self._names = tuple(answering.buffers())
        for name, value in answering.buffers().items():
            self.register_buffer(name, torch.from_numpy(np.array(value)))

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        params = {name: self.get_buffer(name) for name in self._names}
        images = pixels.permute(0, 3, 1, 2).float()
        features = self.net.features((images - self.mean) / self.std)
        logits = self.net.classify(features)
        probabilities = self._calibrate(logits, params)
        # The likeliest label always belongs to the set.
        least = torch.minimum(params["prediction_set_threshold"], probabilities.amax(1, keepdim=True))
        energy = strangeness.energy(features, logits, params)
        score = self._score(features, logits, params)
        return logits, probabilities, probabilities >= least, energy, score > params["ood_threshold"], score
