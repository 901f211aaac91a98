"""Trained networks, from the files that models.train writes."""

from pathlib import Path

import torch

from models.formats import DAMAGE, DataError
from models.network import Network


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
