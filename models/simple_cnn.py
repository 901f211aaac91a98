"""Five convolutions of stride 2, each halving the image, until one number a digit is left (Howard & Gugger 2020, Deep
Learning for Coders, chapter 13, "Batch Normalization").

| layer | kernel | output (N, C, H, W) | parameters |
| --- | --- | --- | --- |
| conv1 + ReLU, norm1 | 8 @ 5 × 5, stride 2, padding 2 | N, 8, 14, 14 | 208 + 16 |
| conv2 + ReLU, norm2 | 16 @ 3 × 3, stride 2, padding 1 | N, 16, 7, 7 | 1,168 + 32 |
| conv3 + ReLU, norm3 | 32 @ 3 × 3, stride 2, padding 1 | N, 32, 4, 4 | 4,640 + 64 |
| conv4 + ReLU, norm4 | 64 @ 3 × 3, stride 2, padding 1 | N, 64, 2, 2 | 18,496 + 128 |
| conv5, norm5 | 10 @ 3 × 3, stride 2, padding 1 | N, 10, 1, 1 | 5,770 + 20 |

30,542 parameters and 0.25 million multiply-adds an image. The book's run was right on 98.64 % after one epoch.
"""

from torch import Tensor, nn

from models.augmentations import shifted
from models.network import Network
from models.one_cycle import one_cycle
from models.recipe import Recipe


class SimpleCNN(Network):
    """Normalised pixels (N, 3, 32, 32) → logits (N, classes).

    MNIST's 28 × 28 are seen, without the two pixels around them, and of three equal channels the first.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        # A small image: 25 pixels for 8 filters, since 9 would be written down again rather than summed up.
        self.layer1 = Halving(1, 8, 5)
        self.layer2 = Halving(8, 16)
        self.layer3 = Halving(16, 32)
        self.layer4 = Halving(32, 64)
        self.conv5 = nn.Conv2d(64, classes, 3, stride=2, padding=1)
        self.norm5 = nn.BatchNorm2d(classes)

    def features(self, x: Tensor) -> Tensor:
        x = x[:, :1, 2:-2, 2:-2]
        return self.layer4(self.layer3(self.layer2(self.layer1(x)))).flatten(1)

    def classify(self, features: Tensor) -> Tensor:
        return self.norm5(self.conv5(features.unflatten(1, (64, 2, 2)))).flatten(1)


class Halving(nn.Module):
    """(N, C, H, W) → (N, width, ⌈H / 2⌉, ⌈W / 2⌉), normalised after the ReLU, as the book has it."""

    def __init__(self, channels: int, width: int, kernel: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, kernel, stride=2, padding=kernel // 2)
        self.activation = nn.ReLU()
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.activation(self.conv(x)))


SIMPLE_CNN = Recipe(
    source="Howard & Gugger 2020, ch. 13",
    dataset="mnist",
    build=SimpleCNN,
    optimizers=one_cycle(0.06),
    augment=shifted(1),
    epochs=5,
    batch_size=512,
)
