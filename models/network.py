"""What every network of the zoo is: a way from pixels to features, and one from features to logits."""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Network(nn.Module, ABC):
    """Normalised pixels (N, 3, H, W) → logits (N, classes)."""

    @abstractmethod
    def features(self, x: Tensor) -> Tensor:
        """What the last layer sees, (N, D): images alike are close together there."""

    @abstractmethod
    def classify(self, features: Tensor) -> Tensor:
        """The last layer: (N, D) → logits (N, classes)."""

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.features(x))
