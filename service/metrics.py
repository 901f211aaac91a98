"""What the service tells Prometheus, beside what BentoML tells it."""

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from service.batching import BatchReport
from service.registry import Registry

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class Metrics:
    """The instruments. Labels take values from closed sets only, so that no client can make them grow."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
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
        self._info = Gauge(
            "trueodds_model_info",
            "Always 1; tells which version of a model runs where.",
            ("model", "version", "backend", "device"),
            multiprocess_mode="livemax",
            registry=registry,
        )

    def served(self, registry: Registry) -> None:
        for model in registry.models.values():
            self._info.labels(model.name, model.bundle.manifest.version, model.backend_name, model.backend.device).set(
                1
            )

    def batch(self, model: str, report: BatchReport) -> None:
        self._batch_size.labels(model).observe(report.size)
        self._wait.labels(model).observe(report.waited_s)
        self._inference.labels(model).observe(report.inference_s)

    def request(self, model: str, status: int, seconds: float) -> None:
        """`model` is a served model's name, or empty for a request that is about none."""
        self._requests.labels(model, str(status)).inc()
        self._duration.labels(model).observe(seconds)
