"""How good a network is on images whose labels are known."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.network import Network


@dataclass(frozen=True)
class Score:
    """Accuracy in [0, 1] and mean negative log-likelihood in nats over n images."""

    n: int
    accuracy: float
    nll: float

    def __str__(self) -> str:
        return f"accuracy {self.accuracy:.4f}  NLL {self.nll:.4f}"


@torch.inference_mode()
def features_and_logits(
    net: Network, images: Tensor, device: torch.device, batch_size: int = 500
) -> tuple[Tensor, Tensor]:
    """Normalised images (N, 3, H, W) → features (N, D) and logits (N, classes), float32 on the CPU."""
    net.eval()
    batches = (batch.to(device).contiguous(memory_format=torch.channels_last) for batch in images.split(batch_size))
    features = [net.features(batch) for batch in batches]
    return torch.cat(features).float().cpu(), torch.cat([net.classify(part).float().cpu() for part in features])


def logits(net: Network, images: Tensor, device: torch.device) -> Tensor:
    """Normalised images (N, 3, H, W) → logits (N, classes) float32 on the CPU."""
    return features_and_logits(net, images, device)[1]


def score(net: Network, images: Tensor, labels: Tensor, device: torch.device) -> Score:
    """Normalised images (N, 3, H, W) and labels (N,) → accuracy and NLL of the uncalibrated network."""
    answers = logits(net, images, device)
    accuracy = (answers.argmax(1) == labels).double().mean()
    return Score(len(labels), accuracy.item(), nn.functional.cross_entropy(answers.double(), labels).item())
