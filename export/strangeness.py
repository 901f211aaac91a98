"""How strange an image is, by what a network makes of it: one score a method, which becomes part of the exported graph.

A score takes features (N, D), logits (N, C) and parameters by their names in the graph, and returns (N,); higher is
stranger. Its fit, under the same name in FITS, finds those parameters from images the network was trained on.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.network import Network

Array = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Tensors = Mapping[str, Tensor]
Score = Callable[[Tensor, Tensor, Tensors], Tensor]
# Training images kept for the nearest neighbour.
NEIGHBOURS = 1000
# Of the features' dimensions those that hold so much of their variance are the principal space.
PRINCIPAL_SHARE = 0.95


@dataclass(frozen=True)
class Seen:
    """What a network makes of training images: features (N, D) and logits (N, C)."""

    features: Array
    logits: Array


Fit = Callable[[Network, Seen], dict[str, Array]]


def energy(features: Tensor, logits: Tensor, params: Tensors) -> Tensor:
    """−log Σ exp(logits) (Liu et al. 2020, equation 4), in nats."""
    # By the log-softmax: MNN takes ReduceLogSumExp's axes from an attribute only, and opset 18 made them an input.
    return torch.log_softmax(logits, dim=1).amax(1) - logits.amax(1)


def vim(features: Tensor, logits: Tensor, params: Tensors) -> Tensor:
    """Energy and what of the features lies off the principal space (Wang et al. 2022, equation 7, without the softmax).

    The virtual logit and the energy order images as the softmax of all logits does.
    """
    off = (features - params["vim_origin"]) @ params["vim_residual"]
    return off.square().sum(1).sqrt() * params["vim_scale"] + energy(features, logits, params)


def knn(features: Tensor, logits: Tensor, params: Tensors) -> Tensor:
    """Minus the cosine to the nearest of some training images (Sun et al. 2022, equation 1, k = 1)."""
    length = features.square().sum(1, keepdim=True).sqrt().clamp(min=1e-12)
    return -((features / length) @ params["knn_bank"]).amax(1)


def kl_uniform(features: Tensor, logits: Tensor, params: Tensors) -> Tensor:
    """−KL(uniform ‖ softmax) − log C, in nats: the mean of the log-probabilities (Huang et al. 2021, equation 3).

    What outlier exposure teaches, so it suits networks that were. Unlike energy it takes no notice of what is added to
    all logits alike, which training leaves open.
    """
    return torch.log_softmax(logits, dim=1).mean(1)


SCORES: dict[str, Score] = {"energy": energy, "vim": vim, "knn": knn, "kl_uniform": kl_uniform}


def fit_nothing(net: Network, seen: Seen) -> dict[str, Array]:
    return {}


def fit_vim(net: Network, seen: Seen) -> dict[str, Array]:
    """Origin, residual space and scale (Wang et al. 2022, section 4)."""
    weights, biases = last_layer(net, seen.features.shape[1])
    origin = -np.linalg.pinv(weights) @ biases
    centred = seen.features - origin
    values, vectors = np.linalg.eigh(centred.T @ centred)
    held = np.cumsum(values[::-1]) / values.sum()
    # One dimension at least is left over, or nothing could lie off the principal space.
    principal = min(int(np.searchsorted(held, PRINCIPAL_SHARE)) + 1, len(values) - 1)
    residual = vectors[:, : len(values) - principal]
    scale = seen.logits.max(1).sum() / np.linalg.norm(centred @ residual, axis=1).sum()
    found = {"vim_origin": origin, "vim_residual": residual, "vim_scale": scale}
    return {name: np.asarray(value, np.float32) for name, value in found.items()}


def fit_knn(net: Network, seen: Seen) -> dict[str, Array]:
    """Evenly chosen training images, as columns of unit length (Sun et al. 2022, section 3)."""
    chosen = np.linspace(0, len(seen.features) - 1, min(NEIGHBOURS, len(seen.features))).astype(int)
    bank = seen.features[chosen]
    return {"knn_bank": (bank / np.maximum(np.linalg.norm(bank, axis=1, keepdims=True), 1e-12)).T.astype(np.float32)}


FITS: dict[str, Fit] = {"energy": fit_nothing, "vim": fit_vim, "knn": fit_knn, "kl_uniform": fit_nothing}


@torch.inference_mode()
def last_layer(net: Network, dimensions: int) -> tuple[Doubles, Doubles]:
    """The weights (C, D) and biases (C,) of a last layer that is linear."""
    biases = net.classify(torch.zeros(1, dimensions)).double()
    weights = net.classify(torch.eye(dimensions)).double() - biases
    return weights.T.numpy(), biases[0].numpy()
