"""The first convolutional network of Howard & Gugger 2020, Deep Learning for Coders, chapter 13: is it a 3 or a 7?

| layer | kernel | output (N, C, H, W) | parameters |
| --- | --- | --- | --- |
| conv1 + ReLU | 4 @ 3 × 3, stride 2, padding 1 | N, 4, 14, 14 | 40 |
| conv2 + ReLU | 8 @ 3 × 3, stride 2, padding 1 | N, 8, 7, 7 | 296 |
| conv3 + ReLU | 16 @ 3 × 3, stride 2, padding 1 | N, 16, 4, 4 | 1,168 |
| conv4 + ReLU | 32 @ 3 × 3, stride 2, padding 1 | N, 32, 2, 2 | 4,640 |
| conv5 | 2 @ 3 × 3, stride 2, padding 1 | N, 2, 1, 1 | 578 |

6,722 parameters and 0.06 million multiply-adds an image.
"""

from torch import Tensor, nn

from models.augmentations import shifted
from models.network import Network
from models.one_cycle import one_cycle
from models.recipe import Recipe


class ThreesOrSevens(Network):
    """Normalised pixels (N, 3, 32, 32) → logits (N, 2).

    MNIST's 28 × 28 are seen, without the two pixels around them, and of three equal channels the first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = _halving(1, 4)
        self.conv2 = _halving(4, 8)
        self.conv3 = _halving(8, 16)
        self.conv4 = _halving(16, 32)
        self.conv5 = _halving(32, 2)
        self.activation = nn.ReLU()

    def features(self, x: Tensor) -> Tensor:
        x = x[:, :1, 2:-2, 2:-2]
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = self.activation(conv(x))
        return x.flatten(1)

    def classify(self, features: Tensor) -> Tensor:
        return self.conv5(features.unflatten(1, (32, 2, 2))).flatten(1)


def _halving(channels: int, width: int) -> nn.Conv2d:
    return nn.Conv2d(channels, width, 3, stride=2, padding=1)


THREES_OR_SEVENS = Recipe(
    source="Howard & Gugger 2020, ch. 13",
    dataset="mnist_3_7",
    build=ThreesOrSevens,
    optimizers=one_cycle(0.01),
    augment=shifted(1),
    epochs=10,
    batch_size=64,
)
