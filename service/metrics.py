"""What the service tells Prometheus, beside what BentoML tells it."""

from functools import cache
from pathlib import Path

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

from service.batching import BatchReport
from service.registry import Registry

EXPOSITION = CONTENT_TYPE_LATEST.encode()
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class Metrics:
    """The instruments. Labels take values from closed sets only, so that no client can make them grow."""

    def __init__(self, folder: Path | None = None, registry: CollectorRegistry = REGISTRY) -> None:
        """`folder` is where all workers of the instance keep theirs; without one there is this worker only."""
        self._all = registry
        if folder:
            self._all = CollectorRegistry()
            MultiProcessCollector(self._all, path=str(folder))  # type: ignore[no-untyped-call]
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
        """In Prometheus' text format, of all workers."""
        return generate_latest(self._all)

    def served(self, registry: Registry) -> None:
        for model in registry.models.values():
            self._info.labels(model.name, model.bundle.manifest.version, model.backend_name, model.backend.device).set(
                1
            )

    def batch(self, model: str, report: BatchReport) -> None:
        """A model's batch has run."""
        size, wait, inference = self._batch_of(model)
        size.observe(report.size)
        wait.observe(report.waited_s)
        inference.observe(report.inference_s)

    def cached(self, model: str, hits: int, misses: int) -> None:
        """So many answers were in the cache and were not."""
        self._cache.labels(model, "hit").inc(hits)
        self._cache.labels(model, "miss").inc(misses)

    def request(self, model: str, status: int, seconds: float) -> None:
        """`model` is a served model's name, or empty for a request that is about none."""
        count, duration = self._request_of(model, status)
        count.inc()
        duration.observe(seconds)

    # Looking up labels takes longer than counting.

    @cache  # noqa: B019  lives as long as the process, over closed sets
    def _batch_of(self, model: str) -> tuple[Histogram, Histogram, Histogram]:
        return self._batch_size.labels(model), self._wait.labels(model), self._inference.labels(model)

    @cache  # noqa: B019  as above
    def _request_of(self, model: str, status: int) -> tuple[Counter, Histogram]:
        return self._requests.labels(model, str(status)), self._duration.labels(model)
