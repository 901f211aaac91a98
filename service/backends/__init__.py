"""What runs a network: one file per framework, each with the same `load`; the heavy import happens inside it."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, Protocol, Self

import numpy as np
import numpy.typing as npt

from service.images import Pixels
from service.seal import Seal

Floats = npt.NDArray[np.float32]
Device = Literal["auto", "cpu", "cuda", "tensorrt"]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Outputs:
    """What the exported graph answers for N images and C classes; the names are the graph's own.

    logits (N, C), uncalibrated; probabilities (N, C), calibrated, rows sum to 1; prediction_set (N, C);
    energy (N,), in nats, higher is stranger; is_ood (N,); ood_score (N,), what is_ood goes by, higher is stranger.
    """

    logits: Floats
    probabilities: Floats
    prediction_set: Flags
    energy: Floats
    is_ood: Flags
    ood_score: Floats

    def __len__(self) -> int:
        return len(self.logits)

    def split(self, sizes: Sequence[int]) -> list[Self]:
        """Consecutive parts of these sizes."""
        parts, start = [], 0
        for size in sizes:
            parts.append(type(self)(*(getattr(self, name)[start : start + size] for name in OUTPUTS)))
            start += size
        return parts

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in OUTPUTS))


OUTPUTS = tuple(field.name for field in fields(Outputs))


@dataclass(frozen=True)
class Placement:
    """What a backend's speed depends on besides the model: two equal ones run at the same speed.

    `hardware` names the processor or GPU, `runtime` the library and its version; `wide_threads` is 0 and `winograd`,
    the library and its version, empty where there is no such way to run.
    """

    backend: str
    device: str
    hardware: str
    runtime: str
    threads: int
    wide_threads: int
    winograd: str = ""


@dataclass(frozen=True)
class Plan:
    """From how many images on a batch is run in another way than usual; None for never, and where there is no such way.

    The usual way is on a worker's share of the cores. The wide one takes all of them, when nobody else needs them. From
    `winograd_from` images on, Winograd's convolutions are used (`service.backends.mnn`), whoever else is there.
    """

    wide_from: int | None = None
    winograd_from: int | None = None


class Backend(Protocol):
    """`forward` takes (N, H, W, 3) uint8 and is called from one thread at a time; `device` says where it runs.

    `alone` says that nobody else needs the cores now. However `plan` has it run, the answers are the same up to float
    noise.
    """

    device: str
    placement: Placement
    plan: Plan

    def forward(self, pixels: Pixels, *, alone: bool = False) -> Outputs: ...


class Load(Protocol):
    """The bundle in `directory`, ready to run on `threads` CPU threads, or on `wide_threads` when alone.

    `winograd` allows Winograd's convolutions; `cache` keeps what is compiled for this machine. `seal` is the bundle's;
    without one, its files are taken as they are, which is for bundles in the making. Raises BackendError, BundleError.
    """

    def __call__(
        self,
        directory: Path,
        device: Device,
        threads: int,
        *,
        wide_threads: int = 0,
        winograd: bool = False,
        cache: Path | None = None,
        seal: Seal | None = None,
    ) -> Backend: ...
