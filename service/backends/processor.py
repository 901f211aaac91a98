"""Which processor and which GPU this is: what was measured or compiled on one says nothing of another."""

import hashlib
import platform
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
GPUS = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True)
class Processor:
    """`name` is for people and tells generations apart; `features` is a digest of the instructions it has."""

    name: str
    features: str


@lru_cache
def processor(cpuinfo: Path = CPUINFO) -> Processor:
    """The first processor of this machine; they are all taken to be alike."""
    fields = _fields(cpuinfo)
    # Virtual machines hide the model's name, hardly ever the numbers.
    numbers = [f"{key.split()[-1]} {fields[key]}" for key in ("cpu family", "model", "stepping") if key in fields]
    name = fields.get("model name") or platform.processor() or platform.machine()
    features = " ".join(sorted((fields.get("flags") or fields.get("Features") or platform.machine()).split()))
    digest = hashlib.sha256(features.encode()).hexdigest()[:16]
    return Processor(f"{name} ({', '.join(numbers)})" if numbers else name, digest)


def gpu_name(gpus: Path = GPUS) -> str:
    """The first NVIDIA GPU, as its driver names it."""
    for file in sorted(gpus.glob("*/information")):
        for line in file.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key == "Model":
                return value.strip()
    return "NVIDIA GPU"


def gpu_present(devices: Path = Path("/dev")) -> bool:
    """Whether there is an NVIDIA device: where there is none, trying CUDA would only fill the log with its failure."""
    return any(devices.glob("nvidia[0-9]*")) or (devices / "dxg").exists()


def _fields(cpuinfo: Path) -> dict[str, str]:
    try:
        first = cpuinfo.read_text(errors="replace").split("\n\n", 1)[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
