"""service.backends.standby: a GPU that fails costs nobody an answer, and no answer is wrong."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from service import bundle, registry
from service.answers import Row
from service.backends import Backend, Device, Outputs, onnx
from service.backends.standby import FAILURES
from service.board import STUCK, Board, Pulses
from service.errors import BackendError
from service.images import Pixels
from service.pulse import Pulse
from service.registry import Registry
from service.seal import Seal
from service.settings import Settings

DIGITS = Settings(models=("digits",), max_batch_size=8, compiled=Path("unused"))


class Gpu:
    """As ONNX Runtime on the CPU answers, but for the calls that are to fail; says that it is a GPU."""

    device = "cuda"

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.placement, self.plan = backend.placement, backend.plan
        self.fails: Iterator[Exception | float | None] = iter(())
        self.calls = 0

    def forward(self, pixels: Pixels, *, alone: bool = False) -> Outputs:
        self.calls += 1
        fault = next(self.fails, None)
        if isinstance(fault, Exception):
            raise fault
        outputs = self._backend.forward(pixels, alone=alone)
        return outputs if fault is None else Outputs(outputs.logits * fault, *list(vars(outputs).values())[1:])


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """What any device but the CPU is taken to be."""
    found: list[Gpu] = []

    def load(directory: Path, device: Device, threads: int, *, seal: Seal | None = None, **ways: object) -> Backend:
        backend = onnx.load(directory, "cpu", threads, seal=seal)
        return backend if device == "cpu" else gpu_of(backend)

    def gpu_of(backend: Backend) -> Gpu:
        found[0]._backend, found[0].placement, found[0].plan = backend, backend.placement, backend.plan
        return found[0]

    monkeypatch.setitem(registry.BACKENDS, "onnx", load)
    found.append(Gpu(onnx.load(bundle.discover(DIGITS.bundles)["digits"].directory, "cpu", 1)))
    return found[0]


def load(settings: Settings, folder: Path) -> tuple[Registry, Pulse]:
    """The served model, and the pulse that it may stop."""
    board = Board(folder / "board", 1)
    pulse = Pulse(board)
    return registry.load(settings, board, lambda name, report: None, pulse=pulse), pulse


def classified(models: Registry, pixels: Pixels) -> list[Row | Exception]:
    """By way of the batcher, as the service does."""

    async def submit() -> list[Row | Exception]:
        return await models.named("digits").classify(pixels)

    return asyncio.run(submit())


def pictures(count: int) -> Pixels:
    """Noise, each another."""
    return np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), np.uint8)


def same(answers: list[Row | Exception], expected: Outputs) -> bool:
    """Whether they are the CPU's."""
    return all(
        isinstance(row, Row) and np.allclose(row.numbers[-1], energy)
        for row, energy in zip(answers, expected.energy, strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("fault", [RuntimeError("out of memory"), float("nan"), float("inf")], ids=str)
def test_a_batch_that_the_gpu_fails_is_answered_by_the_cpu(
    fault: Exception | float, gpu: Gpu, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And the next one by the GPU again; nobody is replaced for one failure."""
    models, pulse = load(DIGITS, tmp_path)
    try:
        pixels, calls = pictures(5), gpu.calls
        expected = onnx.load(models.named("digits").bundle.directory, "cpu", 1).forward(pixels)
        gpu.fails = iter([fault])
        for _ in range(3):
            assert same(classified(models, pixels), expected)
        assert gpu.calls == calls + 3
        assert caplog.text.count("the CPU answers") == 1
        pulse.beat()
        assert Pulses(tmp_path / "board").of(1) != STUCK
    finally:
        models.close()


def test_a_gpu_that_is_lost_has_the_worker_replaced(gpu: Gpu, tmp_path: Path) -> None:
    """Only a new process can have it back; until then the CPU answers all, and the GPU is asked no more."""
    models, pulse = load(DIGITS, tmp_path)
    try:
        pixels, calls = pictures(3), gpu.calls
        expected = onnx.load(models.named("digits").bundle.directory, "cpu", 1).forward(pixels)
        gpu.fails = iter([RuntimeError("the device is lost")] * 100)
        for turn in range(FAILURES + 3):
            pulse.beat()
            assert (Pulses(tmp_path / "board").of(1) == STUCK) == (turn >= FAILURES)
            assert same(classified(models, pixels), expected)
        assert gpu.calls == calls + FAILURES
    finally:
        models.close()


def test_a_gpu_that_fails_at_the_start_is_done_without(
    gpu: Gpu, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the device is chosen automatically; one that was asked for by name is missed."""
    gpu.fails = iter([RuntimeError("out of memory")] * 2)
    models, _ = load(DIGITS, tmp_path)
    models.close()
    assert models.named("digits").backend.device == "cpu"
    assert "the CPU is used: out of memory" in caplog.text
    with pytest.raises(BackendError, match="digits does not run on cuda: out of memory"):
        load(DIGITS.model_copy(update={"device": "cuda"}), tmp_path)
