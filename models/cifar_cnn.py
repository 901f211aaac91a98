"""Three convolutions, each pooled, and two layers on top of them: the CIFAR-10 network of the course notes (Udacity,
Deep Learning v2, convolutional neural networks, 2018), deep enough to be worth its dropout.

| layer | kernel | output (N, C, H, W) | parameters |
| --- | --- | --- | --- |
| conv1 + ReLU | 16 @ 3 × 3, padding 1 | N, 16, 32, 32 | 448 |
| max pool | 2 × 2 | N, 16, 16, 16 | |
| conv2 + ReLU | 32 @ 3 × 3, padding 1 | N, 32, 16, 16 | 4,640 |
| max pool | 2 × 2 | N, 32, 8, 8 | |
| conv3 + ReLU | 64 @ 3 × 3, padding 1 | N, 64, 8, 8 | 18,496 |
| max pool | 2 × 2 | N, 64, 4, 4 | |
| dropout ¼, fc1 + ReLU | 1024 → 500 | N, 500 | 512,500 |
| dropout ¼, fc2 | 500 → 10 | N, 10 | 5,010 |

541,094 parameters and 3.3 million multiply-adds an image. Published: 76.7 %, with images turned and mirrored.
"""

from torch import Tensor, nn

from models.augmentations import mirrored_and_shifted
from models.network import Network
from models.one_cycle import one_cycle
from models.recipe import Recipe


class CifarCNN(Network):
    """Normalised pixels (N, 3, 32, 32) → logits (N, classes)."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.conv3 = nn.Conv2d(32, 64, 3, padding=1)
        self.fc1 = nn.Linear(1024, 500)
        self.fc2 = nn.Linear(500, classes)
        self.activation = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.dropout = nn.Dropout(0.25)

    def features(self, x: Tensor) -> Tensor:
        for conv in (self.conv1, self.conv2, self.conv3):
            x = self.pool(self.activation(conv(x)))
        return self.dropout(self.activation(self.fc1(self.dropout(x.flatten(1)))))

    def classify(self, features: Tensor) -> Tensor:
        return self.fc2(features)


CIFAR_CNN = Recipe(
    source="Udacity 2018",
    dataset="cifar10",
    build=CifarCNN,
    optimizers=one_cycle(3e-3, weight_decay=0.05),
    augment=mirrored_and_shifted(3),
    epochs=30,
    batch_size=125,
    bf16=True,
)
