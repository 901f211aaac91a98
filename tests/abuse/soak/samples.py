"""What is looked at every few seconds, and what becomes of it over the run."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loadtest.processes import PROC, cpu_s, machine_cpu_s, pss_mib, rss_mib, tree

MB_A_MIB = 2**20 / 1e6


@dataclass(frozen=True)
class Footprint:
    """Of all processes of a service: their ids, memory in MB and what they hold."""

    pids: tuple[int, ...]
    rss_mb: tuple[float, ...]
    pss_mb: float
    descriptors: int
    threads: int
    cpu_s: float

    @classmethod
    def of(cls, root: int) -> "Footprint":
        pids = tree(root)
        rss = tuple(rss_mib([pid]) * MB_A_MIB for pid in pids)
        return cls(
            tuple(pids),
            rss,
            pss_mib(pids) * MB_A_MIB,
            sum(map(_descriptors, pids)),
            sum(map(_threads, pids)),
            cpu_s(pids),
        )


@dataclass(frozen=True)
class Sample:
    """At a time, in seconds from the start, after so many requests; latencies of lone images since the last, in ms."""

    seconds: float
    requests: int
    footprint: Footprint
    rate: float
    p50_ms: float
    p99_ms: float
    lone_ms: Sequence[float]
    # CPU time of the whole machine since it started, in seconds.
    machine_s: float = 0.0


def sample(seconds: float, requests: int, root: int, last: Sample | None, lone_ms: Sequence[float]) -> Sample:
    """`requests` and `lone_ms` since the last one are what its rate and percentiles are of."""
    before_s, before = (last.seconds, last.requests) if last else (0.0, 0)
    p50, p99 = percentiles(lone_ms)
    rate = (requests - before) / max(1e-9, seconds - before_s)
    return Sample(seconds, requests, Footprint.of(root), rate, p50, p99, lone_ms, machine_cpu_s())


def percentiles(lone_ms: Sequence[float]) -> tuple[float, float]:
    """The 50th and the 99th; not a number where there are none."""
    if not len(lone_ms):
        return float("nan"), float("nan")
    p50, p99 = np.percentile(np.asarray(lone_ms), (50, 99))
    return float(p50), float(p99)


def slope_per_million(samples: Sequence[Sample], values: Sequence[float]) -> float:
    """By least squares, for each million requests."""
    if len(samples) < 2 or samples[-1].requests == samples[0].requests:
        return float("nan")
    millions = np.array([each.requests / 1e6 for each in samples])
    return float(np.polyfit(millions, np.array(values), 1)[0])


def quarters_per_million(samples: Sequence[Sample], values: Sequence[float]) -> float:
    """What the last quarter has more than the first, on average, for each million requests between them."""
    size = len(samples) // 4
    if not size:
        return float("nan")
    millions = [each.requests / 1e6 for each in samples]
    apart = float(np.mean(millions[-size:]) - np.mean(millions[:size]))
    return float(np.mean(values[-size:]) - np.mean(values[:size])) / apart


def p99_of_quarters(samples: Sequence[Sample]) -> tuple[float, float]:
    """Of all lone images in the first quarter of the samples, and in the last; in ms."""
    size = len(samples) // 4
    if not size:
        return float("nan"), float("nan")
    return _pooled_p99(samples[:size]), _pooled_p99(samples[-size:])


def _pooled_p99(samples: Sequence[Sample]) -> float:
    return percentiles(np.concatenate([np.asarray(each.lone_ms) for each in samples]).tolist())[1]


def _descriptors(pid: int) -> int:
    with suppress(OSError):
        return len(list((PROC / str(pid) / "fd").iterdir()))
    return 0


def _threads(pid: int) -> int:
    with suppress(OSError):
        return len(list(Path(PROC / str(pid) / "task").iterdir()))
    return 0
