"""The models being served: each a bundle, the backend that runs it and the batcher in front of that."""

import logging
import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from service import bundle, tuning
from service.answers import Answers, Row
from service.audit import disagreement, probes
from service.backends import Backend, Load, onnx, torchscript
from service.backends.standby import WithStandby
from service.batching import Batcher, BatchReport, Limits, Priority
from service.binary import BinaryAnswers
from service.board import Board
from service.bundle import Bundle
from service.errors import BackendError, BundleError, StartupError, UnknownModel
from service.images import Pixels
from service.memory import Memories, Memory
from service.pulse import Pulse
from service.settings import Settings, available_cores
from service.tuning import Measured
from service.turns import Turns

logger = logging.getLogger("trueodds")

BACKENDS: dict[str, Load] = {
    "onnx": onnx.load,
    "torchscript": torchscript.load,
}


@dataclass(frozen=True)
class ServedModel:
    """One model, loaded and warm."""

    bundle: Bundle
    backend_name: str
    backend: Backend
    answers: Answers
    binary_answers: BinaryAnswers
    batcher: Batcher[Row]
    # Of its answers, for labels that come later; None where nothing is remembered.
    memory: Memory | None = None

    @property
    def name(self) -> str:
        return self.bundle.manifest.name

    async def classify(
        self, pixels: Pixels, priority: Priority = Priority.INTERACTIVE, deadline: float = math.inf
    ) -> list[Row | Exception]:
        """(N, H, W, 3) uint8 → an answer for each image, batched with whatever else is waiting."""
        return await self.batcher.submit(pixels, priority, deadline)


@dataclass(frozen=True)
class Registry:
    """The served models by name, and the thread that runs their longer batches."""

    models: dict[str, ServedModel]
    executor: ThreadPoolExecutor

    def named(self, name: str) -> ServedModel:
        """Raises UnknownModel, listing the known ones."""
        try:
            return self.models[name]
        except KeyError:
            raise UnknownModel(f"There is no model {name!r}; there are {', '.join(self.models)}.") from None

    def close(self) -> None:
        """Let the running batch end and stop the thread."""
        self.executor.shutdown()


def load(
    settings: Settings,
    board: Board,
    report: Callable[[str, BatchReport], None],
    cache: Path | None = None,
    pulse: Pulse | None = None,
    memories: Memories | None = None,
) -> Registry:
    """Load and warm up every model of the settings; `report` learns of each batch. Raises StartupError.

    `cache` is a folder for what is compiled and measured for this machine; without one that is done at each start.
    """
    # A backend is called by one thread at a time, and a device runs one batch at a time.
    executor = ThreadPoolExecutor(1, thread_name_prefix="inference")
    bundles = bundle.discover(settings.bundles, settings.models, settings.trust, settings.variant)
    pulse = pulse or Pulse(board)
    warm = {name: _warm_backend(found, settings, cache, pulse) for name, found in bundles.items()}
    on_loop = settings.thread_count == 1 and all(backend.device == "cpu" for backend, _ in warm.values())
    turns = Turns(executor, board, on_loop, pulse)
    memory_of = memories.of if memories else lambda found: None
    models = {
        name: _serve(found, *warm[name], settings, turns, partial(report, name), memory_of(found))
        for name, found in bundles.items()
    }
    return Registry(models, executor)


def prepare(bundles: Mapping[str, Bundle], settings: Settings, cache: Path) -> None:
    """Compile and measure into `cache` what is not there yet: best in a process that ends before the workers start.

    On a machine that is still quiet, and for memory that no worker then holds. Raises StartupError.
    """
    load = BACKENDS[settings.backend]
    # Much of it is done by processes of its own.
    with ThreadPoolExecutor(available_cores()) as side_by_side:
        backends = side_by_side.map(lambda found: tuning.loaded(load, found, settings, cache), bundles.values())
    for found, backend in zip(bundles.values(), backends, strict=True):
        tuning.tuned(found, backend, cache)


def check(bundles: Mapping[str, Bundle], settings: Settings, cache: Path | None = None) -> None:
    """Whether each runs as these settings have it, and keeps to its calibration. Raises BackendError, BundleError.

    In one process, before there are workers that would try again and again. `cache` as `load` has it.
    """
    # The default runs anywhere; another choice may not be there.
    device = "cpu" if (settings.backend, settings.device) == ("onnx", "auto") else settings.device
    for found in bundles.values():
        _check_kept(BACKENDS[settings.backend](found.directory, device, 1, cache=cache, seal=found.seal), found)


def _warm_backend(found: Bundle, settings: Settings, cache: Path | None, pulse: Pulse) -> tuple[Backend, int]:
    """The backend, ready, and the most images it should get at once; behind a GPU stands the CPU."""
    on_cpu = settings.model_copy(update={"device": "cpu"})
    try:
        backend, max_batch_size = _warm(found, settings, cache)
    except StartupError:
        raise
    except Exception as error:
        # A GPU may be there, and fail all the same.
        if settings.device != "auto":
            raise BackendError(f"{found.manifest.name} does not run on {settings.device}: {error}.") from error
        logger.warning("the CPU is used: %s", error)
        return _warm(found, on_cpu, cache)
    if backend.device != "cpu":
        standby = partial(tuning.loaded, BACKENDS[settings.backend], found, on_cpu, cache)
        backend = WithStandby(backend, standby, pulse.give_up)
    return backend, max_batch_size


def _warm(found: Bundle, settings: Settings, cache: Path | None) -> tuple[Backend, int]:
    backend, measured = _loaded(found, settings, cache)
    max_batch_size = settings.max_batch_size or measured.max_batch_size
    warm_up(backend, found, max_batch_size)
    return backend, max_batch_size


def _loaded(found: Bundle, settings: Settings, cache: Path | None) -> tuple[Backend, Measured]:
    backend = tuning.loaded(BACKENDS[settings.backend], found, settings, cache)
    return backend, tuning.tuned(found, backend, cache)


def _serve(
    found: Bundle,
    backend: Backend,
    max_batch_size: int,
    settings: Settings,
    turns: Turns,
    report: Callable[[BatchReport], None],
    memory: Memory | None,
) -> ServedModel:
    answers = Answers(found)
    limits = Limits(
        max_batch_size,
        settings.max_queue_size,
        settings.max_wait_ms / 1000,
        settings.max_queue_bytes,
        settings.interactive_share,
    )

    def forward(pixels: Pixels, *, alone: bool) -> list[Row]:
        return answers.rows(backend.forward(pixels, alone=alone))

    batcher = Batcher(forward, limits, turns, report)
    return ServedModel(found, settings.backend, backend, answers, BinaryAnswers(found, answers), batcher, memory)


def warm_up(backend: Backend, found: Bundle, max_batch_size: int) -> None:
    """Run the backend at the largest and smallest shape it will be asked for, in each of its ways.

    The largest first: what is allocated for it serves the smaller ones too. Raises BundleError where it does not answer
    as its calibration says.
    """
    spec = found.manifest.input
    for size in (max_batch_size, 1):
        pixels = np.zeros((size, spec.height, spec.width, 3), np.uint8)
        for alone in (False, True):
            backend.forward(pixels, alone=alone)
    _check_kept(backend, found)


def _check_kept(backend: Backend, found: Bundle) -> None:
    """Whether what runs keeps to the calibration, whatever form of the network it came from."""
    if found.calibration is None:
        return
    spec = found.manifest.input
    # One by one, lest all together take memory that nothing later needs.
    answers = (backend.forward(probe[None]) for probe in probes(spec.height, spec.width))
    difference = next(filter(None, (disagreement(answer, found.calibration) for answer in answers)), None)
    if difference:
        raise BundleError(
            f"{found.directory} does not keep to its calibration: {difference}; restore the bundle or export it again."
        )
