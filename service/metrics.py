"""What the service tells Prometheus, beside what BentoML tells it.

What happens with every request or batch is noted in plain lists and counted a moment later: counting one at a time
takes ten times as long, for each number lies in a file of which all workers tell.
"""

import asyncio
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

from service.batching import BatchReport
from service.registry import Registry

EXPOSITION = CONTENT_TYPE_LATEST.encode()
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
# How long others may not see what a worker has noted, in seconds.
COUNT_AFTER_S = 0.05
# Room for what the instruments of one worker count, by kind, as prometheus_client names its files.
RESERVED_BYTES = {"counter": 16 * 1024, "gauge_livemax": 16 * 1024, "histogram": 64 * 1024}
SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class _OfAllWorkers(MultiProcessCollector):
    """Adds up what all workers count in files of `folder`."""

    def __init__(self, registry: CollectorRegistry, folder: Path) -> None:
        super().__init__(registry, str(folder))  # type: ignore[no-untyped-call]
        self._folder = folder

    def collect(self) -> Iterable[Metric]:
        # A worker that starts makes a file before it fills it; the library would stumble over that.
        files = [str(path) for path in self._folder.glob("*.db") if _filled(path)]
        found: Iterable[Metric] = self.merge(files, accumulate=True)  # type: ignore[no-untyped-call]
        return found


class Metrics:
    """The instruments. Labels take values from closed sets only, so that no client can make them grow."""

    def __init__(self, folder: Path | None = None, registry: CollectorRegistry = REGISTRY) -> None:
        """`folder` is where all workers of the instance keep theirs; without one there is this worker only."""
        # Seconds by model and status, reports by model: what is not counted yet.
        self._answered: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
        self._batches: defaultdict[str, list[BatchReport]] = defaultdict(list)
        self._all = registry
        if folder:
            _reserve(folder)
            self._all = CollectorRegistry()
            _OfAllWorkers(self._all, folder)
        self._requests = Counter(
            "trueodds_requests", "Requests answered by a /v1 route.", ("model", "status"), registry=registry
        )
        self._duration = Histogram(
            "trueodds_request_duration_seconds",
            "From a request's head to its answer.",
            ("model",),
            buckets=SECONDS,
            registry=registry,
        )
        self._batch_size = Histogram(
            "trueodds_batch_size", "Images in a batch.", ("model",), buckets=BATCH_SIZES, registry=registry
        )
        self._wait = Histogram(
            "trueodds_batch_wait_seconds",
            "Longest wait among a batch's images.",
            ("model",),
            buckets=SECONDS,
            registry=registry,
        )
        self._inference = Histogram(
            "trueodds_inference_seconds",
            "Time a batch spent in the backend.",
            ("model",),
            buckets=SECONDS,
            registry=registry,
        )
        self._cache = Counter(
            "trueodds_cache", "Answers looked for in the cache.", ("model", "outcome"), registry=registry
        )
        self._info = Gauge(
            "trueodds_model_info",
            "Always 1; tells which version of a model runs where.",
            ("model", "version", "backend", "device"),
            multiprocess_mode="livemax",
            registry=registry,
        )

    def exposition(self) -> bytes:
        """In Prometheus' text format, of all workers; what this one has noted since the last `count` is left out."""
        return generate_latest(self._all)

    def count(self) -> None:
        """Count what is noted. In the thread that notes."""
        answered, self._answered = self._answered, defaultdict(list)
        batches, self._batches = self._batches, defaultdict(list)
        for (model, status), seconds in answered.items():
            self._requests.labels(model, str(status)).inc(len(seconds))
            _observe(self._duration.labels(model), seconds)
        for model, reports in batches.items():
            _observe(self._batch_size.labels(model), [report.size for report in reports])
            _observe(self._wait.labels(model), [report.waited_s for report in reports])
            _observe(self._inference.labels(model), [report.inference_s for report in reports])

    def served(self, registry: Registry) -> None:
        for model in registry.models.values():
            self._info.labels(model.name, model.bundle.manifest.version, model.backend_name, model.backend.device).set(
                1
            )

    def batch(self, model: str, report: BatchReport) -> None:
        """A model's batch has run."""
        if not (self._batches or self._answered):
            _later(self.count)
        self._batches[model].append(report)

    def cached(self, model: str, hits: int, misses: int) -> None:
        """So many answers were in the cache and were not."""
        self._cache.labels(model, "hit").inc(hits)
        self._cache.labels(model, "miss").inc(misses)

    def request(self, model: str, status: int, seconds: float) -> None:
        """`model` is a served model's name, or empty for a request that is about none."""
        if not (self._batches or self._answered):
            _later(self.count)
        self._answered[model, status].append(seconds)


def _reserve(folder: Path) -> None:
    """Make this worker's files before they are needed: whoever writes to a mapped file on a full disk is killed.

    Raises OSError where there is no room now.
    """
    for kind, size in RESERVED_BYTES.items() if sys.platform == "linux" else ():
        path = folder / f"{kind}_{os.getpid()}.db"
        with path.open("ab") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError:
                path.unlink()
                raise


def _filled(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        # There was no room for it after all.
        return False


def _later(count: Callable[[], None]) -> None:
    """Where no event loop runs, it is for whoever notes to count."""
    with suppress(RuntimeError):
        asyncio.get_running_loop().call_later(COUNT_AFTER_S, count)


def _observe(histogram: Histogram, amounts: Sequence[float]) -> None:
    """As `histogram.observe` does for each: a bucket's bound belongs to it."""
    hits = np.bincount(np.searchsorted(histogram._upper_bounds, amounts)).tolist()
    histogram._sum.inc(sum(amounts))
    for bucket, number in zip(histogram._buckets, hits, strict=False):
        if number:
            bucket.inc(number)
