"""LeNet-5 as the course notes draw it for colour input (Ng, Deep Learning, course 4; LeCun et al. 1998, section II.B).

| layer | kernel | output (N, C, H, W) | parameters |
| --- | --- | --- | --- |
| conv1 + ReLU | 6 @ 5 × 5 | N, 6, 28, 28 | 456 |
| max pool | 2 × 2 | N, 6, 14, 14 | |
| conv2 + ReLU | 16 @ 5 × 5 | N, 16, 10, 10 | 2,416 |
| max pool | 2 × 2 | N, 16, 5, 5 | |
| fc1 + ReLU | 400 → 120 | N, 120 | 48,120 |
| fc2 + ReLU | 120 → 84 | N, 84 | 10,164 |
| fc3 | 84 → 10 | N, 10 | 850 |

62,006 parameters and 0.65 million multiply-adds an image.
"""

import torch
from torch import Tensor, nn

from models.augmentations import redrawn
from models.network import Network
from models.one_cycle import one_cycle
from models.recipe import Recipe


class LeNet5(Network):
    """Normalised pixels (N, 3, 32, 32) → logits (N, classes)."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(400, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, classes)
        self.activation = nn.ReLU()

    def features(self, x: Tensor) -> Tensor:
        x = self.pool(self.activation(self.conv1(x)))
        x = self.pool(self.activation(self.conv2(x)))
        x = self.activation(self.fc1(x.flatten(1)))
        return self.activation(self.fc2(x))

    def classify(self, features: Tensor) -> Tensor:
        return self.fc3(features)


def augment(images: Tensor, epoch: int, order: Tensor, generator: torch.Generator) -> Tensor:
    """Turn up to 12°, scale up to 12 %, slant up to 0.2 and shift up to 1.5 pixels. (B, 3, H, W) → the same."""
    return redrawn(images, generator, degrees=12, scale=0.12, slant=0.2, shift=1.5)


LENET5 = Recipe(
    source="LeCun et al. 1998",
    dataset="mnist",
    build=LeNet5,
    optimizers=one_cycle(4e-3, weight_decay=0.02, rising=0.2),
    augment=augment,
    epochs=30,
    batch_size=250,
)
