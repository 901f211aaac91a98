"""What is kept of a run when it is over: the weights, and beside them how they came about."""

import json
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.evaluate import Score
from models.files import replacing
from models.network import Network

# The dimensions of a convolution's filters, (O, I, H, W).
FILTERS = 4


def halve(net: Network) -> None:
    """Round the filters to what 16 bits (float16) hold of them."""
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim == FILTERS:
                parameter.copy_(parameter.half())


def write(path: Path, net: Network, record: dict[str, Any], *, half: bool = False) -> None:
    """The record alone where the path is of JSON; else the weights, and then the record beside them.

    half: filters are kept in 16 bits, and become float32 again in a network that loads them.
    A run killed in between is made good by starting it again.
    """
    beside = path.with_suffix(".json")
    if path != beside:
        with replacing(path) as partial:
            torch.save({key: _kept(value, half) for key, value in net.state_dict().items()}, partial)
    with replacing(beside) as partial:
        partial.write_text(json.dumps(record, indent=1) + "\n")
    print(f"wrote {beside}" if path == beside else f"wrote {path} and {beside}")


def _kept(value: Tensor, half: bool) -> Tensor:
    value = value.detach().cpu().contiguous()
    return value.half() if half and value.ndim == FILTERS else value


def figures(result: Score) -> dict[str, float]:
    return {"n": result.n, "accuracy": result.accuracy, "nll": result.nll}


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": str(torch.__version__)}


def hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    models = (line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name"))
    cores = torch.get_num_threads()
    return f"{cores} core{'s' * (cores > 1)} of {next(models, platform.processor() or platform.machine())}"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
