"""The zoo: every network that can be trained, exported and served, by the name it is served under."""

from pathlib import Path

from models.cifar_cnn import CIFAR_CNN
from models.convnet import SMALLEST
from models.digit_vgg import DIGITS
from models.lean_vgg import CIFAR10_LEAN
from models.lenet5 import LENET5
from models.recipe import Recipe
from models.simple_cnn import SIMPLE_CNN
from models.threes_or_sevens import THREES_OR_SEVENS
from models.whitened_resnet import CIFAR10_LARGE
from models.whitened_vgg import CIFAR10

# Where training keeps its state, by the name of the network, under the working directory.
RUNS = Path("runs")

MODELS: dict[str, Recipe] = {
    "digits": DIGITS,
    "cifar10": CIFAR10,
    "cifar10_lean": CIFAR10_LEAN,
    "cifar10_large": CIFAR10_LARGE,
    "lenet5": LENET5,
    "simple_cnn": SIMPLE_CNN,
    "threes_or_sevens": THREES_OR_SEVENS,
    "cifar_cnn": CIFAR_CNN,
    "cs231n_smallest": SMALLEST,
}


def weights_path(name: str) -> Path:
    """The trained weights of a model; the record of the run that made them lies beside them as JSON."""
    return Path(__file__).parent / "weights" / f"{name}.pt"


def record_path(name: str, seed: int) -> Path:
    """The record of a run whose weights were not kept: one more seed, for the mean and spread of the figures."""
    return weights_path(name).parent / "seeds" / f"{name}-{seed}.json"
