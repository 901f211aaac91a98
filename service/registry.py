"""The models being served: each a bundle, the backend that runs it and the batcher in front of that."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from service import bundle
from service.backends import Backend, Device, Outputs, onnx, torchscript
from service.batching import Batcher, BatchReport, Limits
from service.bundle import Bundle
from service.errors import UnknownModel
from service.images import Pixels
from service.settings import Settings

BACKENDS: dict[str, Callable[[Path, Device, int], Backend]] = {
    "onnx": onnx.load,
    "torchscript": torchscript.load,
}


@dataclass(frozen=True)
class ServedModel:
    """One model, loaded and warm."""

    bundle: Bundle
    backend_name: str
    backend: Backend
    batcher: Batcher
    executor: ThreadPoolExecutor

    @property
    def name(self) -> str:
        return self.bundle.manifest.name

    async def classify(self, pixels: Pixels) -> Outputs:
        """(N, H, W, 3) uint8 → the outputs for these images, batched with whatever else is waiting."""
        return await self.batcher.submit(pixels)


@dataclass(frozen=True)
class Registry:
    """The served models by name."""

    models: dict[str, ServedModel]

    def named(self, name: str) -> ServedModel:
        """Raises UnknownModel, listing the known ones."""
        try:
            return self.models[name]
        except KeyError:
            raise UnknownModel(f"There is no model {name!r}; there are {', '.join(self.models)}.") from None

    def close(self) -> None:
        """Let running batches end and stop the threads."""
        for model in self.models.values():
            model.executor.shutdown()


def load(settings: Settings, report: Callable[[str, BatchReport], None]) -> Registry:
    """Load and warm up every model of the settings; `report` learns of each batch. Raises StartupError."""
    bundles = bundle.discover(settings.bundles, settings.models)
    return Registry({name: _serve(found, settings, partial(report, name)) for name, found in bundles.items()})


def _serve(found: Bundle, settings: Settings, report: Callable[[BatchReport], None]) -> ServedModel:
    backend = BACKENDS[settings.backend](found.directory, settings.device, settings.thread_count)
    limits = Limits(settings.max_batch_size, settings.max_queue_size, settings.max_wait_ms / 1000)
    warm_up(backend, found, limits.max_batch_size)
    # One thread a model: a backend is called by one thread at a time.
    executor = ThreadPoolExecutor(1, thread_name_prefix=found.manifest.name)
    return ServedModel(found, settings.backend, backend, Batcher(backend.forward, limits, executor, report), executor)


def warm_up(backend: Backend, found: Bundle, max_batch_size: int) -> None:
    """Run the backend at the smallest and largest shape it will be asked for."""
    spec = found.manifest.input
    for size in {1, max_batch_size}:
        backend.forward(np.zeros((size, spec.height, spec.width, 3), np.uint8))
