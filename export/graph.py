"""The network as it is deployed: pixels in, calibrated answer out, in any runtime."""

import torch
from torch import Tensor, nn

from service.images import InputSpec


class CalibratedGraph(nn.Module):
    """(N, H, W, 3) uint8 → logits, probabilities, prediction_set, energy, is_ood; see service.backends.Outputs.

    Normalisation and calibration are part of it, their parameters named buffers.
    """

    mean: Tensor
    std: Tensor
    temperature: Tensor
    prediction_set_threshold: Tensor
    energy_threshold: Tensor

    def __init__(
        self, net: nn.Module, spec: InputSpec, temperature: float, set_threshold: float, energy_threshold: float
    ) -> None:
        super().__init__()
        self.net = net
        # 255 is folded in, so that standardising is one subtraction and one division.
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(spec.std).view(1, 3, 1, 1) * 255)
        self.register_buffer("temperature", torch.tensor(temperature))
        self.register_buffer("prediction_set_threshold", torch.tensor(set_threshold))
        self.register_buffer("energy_threshold", torch.tensor(energy_threshold))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        images = pixels.permute(0, 3, 1, 2).float()
        logits = self.net((images - self.mean) / self.std)
        probabilities = torch.softmax(logits / self.temperature, dim=1)
        # The likeliest label always belongs to the set.
        likely = probabilities >= torch.minimum(self.prediction_set_threshold, probabilities.amax(1, keepdim=True))
        energy = -torch.logsumexp(logits, dim=1)
        return logits, probabilities, likely, energy, energy > self.energy_threshold
