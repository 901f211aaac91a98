"""The zoo: every network that can be trained, exported and served, by the name it is served under."""

from pathlib import Path

from models.digit_vgg import DIGITS
from models.recipe import Recipe
from models.whitened_resnet import CIFAR10_LARGE
from models.whitened_vgg import CIFAR10

MODELS: dict[str, Recipe] = {
    "digits": DIGITS,
    "cifar10": CIFAR10,
    "cifar10_large": CIFAR10_LARGE,
}


def weights_path(name: str) -> Path:
    """The trained weights of a model; the record of the run that made them lies beside them as JSON."""
    return Path(__file__).parent / "weights" / f"{name}.pt"


def record_path(name: str, seed: int) -> Path:
    """The record of a run whose weights were not kept: one more seed, for the mean and spread of the figures."""
    return weights_path(name).parent / "seeds" / f"{name}-{seed}.json"
