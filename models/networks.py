"""Trained networks, from the files that models.train writes: those of the zoo, and those of somebody's own images."""

import json
from pathlib import Path
from typing import Any

import torch

from models import MODELS, own, weights_path
from models.formats import DAMAGE, DataError
from models.network import Network
from models.task import Task, zoo


def names() -> list[str]:
    """Of all that can be exported."""
    return sorted({*MODELS, *own.known()})


def task(name: str) -> Task:
    """What a network learnt, and the images it did not see. Raises DataError."""
    return zoo(name) if name in MODELS else own.reopen(name)


def untrained(name: str) -> Network:
    """Without its images. Raises DataError."""
    return MODELS[name].build() if name in MODELS else own.network(name)


def weights_of(name: str) -> Path:
    return weights_path(name) if name in MODELS else own.weights_of(name)


def record(task: Task, weights: Path) -> dict[str, Any]:
    """Of the training. Raises DataError where it was on other images than would be calibrated and tested on."""
    found: dict[str, Any] = json.loads(weights.with_suffix(".json").read_text())
    if found.get("splits", task.digests) != task.digests:
        raise DataError(f"{weights} was trained on other images than it would be judged by; train it again")
    return found


def load_network(net: Network, weights: Path) -> Network:
    """Put trained weights into a network. Raises DataError."""
    record = weights.with_suffix(".json")
    for path in (weights, record):
        if not path.is_file():
            raise DataError(f"there is no {path}; python -m models.train writes it")
    try:
        net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    except DAMAGE as error:
        raise DataError(f"{weights} does not hold the weights of this network; train it again") from error
    net.eval()
    return net
