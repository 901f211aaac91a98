"""ONNX Runtime: the CUDA execution provider where there is one, the CPU otherwise; chosen here and reported."""

import importlib.metadata
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from service.backends import OUTPUTS, Backend, Device, Outputs, Placement, Plan, mnn
from service.backends.external_data import self_contained
from service.backends.optimized import OptimizedGraph, optimized
from service.backends.processor import gpu_present, processor
from service.errors import BackendError, BundleError
from service.images import Pixels
from service.seal import ModelFile, Seal, model_file

if TYPE_CHECKING:
    import onnxruntime as ort

logger = logging.getLogger("trueodds")

FILE = "model.onnx"
PROVIDERS = {"tensorrt": "TensorrtExecutionProvider", "cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}
CPU = PROVIDERS["cpu"]


class OnnxBackend:
    """Sessions of ONNX Runtime on the CPU over one graph and one set of weights: a narrow and perhaps a wide one.

    And perhaps a third way, not ONNX Runtime's, for larger batches.

    `run` it is, not IO binding: digits at batch 1 takes 49.0 µs by `run`, 46.5 into preallocated arrays that must then
    be copied and exist for every batch size, 61 with outputs bound by device, 93 by `run_with_ort_values`
    (one core of an AMD EPYC, Zen 4; ONNX Runtime 1.32).
    """

    device = "cpu"

    def __init__(
        self, model: ModelFile, threads: int, wide_threads: int = 0, winograd: bool = False, cache: Path | None = None
    ) -> None:
        self._sessions = Sessions(model, threads, wide_threads if wide_threads > threads else 0, cache)
        self._winograd = self._winograd_form(model, threads, cache) if winograd else None
        if self._winograd is None:
            # Whatever is wrong with the model, here it shows.
            self._sessions.make()
        self.placement = Placement(
            "onnx",
            self.device,
            processor().name,
            f"onnxruntime {_version()}",
            threads,
            self._sessions.wide_threads,
            (mnn.runtime() or "") if self._winograd else "",
        )
        self.plan = Plan(wide_from=1)

    def forward(self, pixels: Pixels, *, alone: bool = False) -> Outputs:
        images, plan = len(pixels), self.plan
        if self._winograd and plan.winograd_from is not None and images >= plan.winograd_from:
            try:
                return self._winograd.forward(pixels)
            except BackendError as error:
                logger.warning("Winograd's convolutions are not used: %s", error)
                self._winograd = None
        wide = alone and plan.wide_from is not None and images >= plan.wide_from
        return self._sessions.run(pixels, wide=wide)

    def _winograd_form(self, model: ModelFile, threads: int, cache: Path | None) -> mnn.MnnNetwork | None:
        try:
            return mnn.load(model, threads, self._sessions.run, self._sessions.shape, cache)
        except BackendError as error:
            logger.info("%s: %s", model.path, error)
            return None


class Sessions:
    """A narrow and perhaps a wide session over one graph and one set of weights, made at the first run.

    A process that only ever runs Winograd's convolutions does without ONNX Runtime, which takes 28 MB of it.
    """

    def __init__(self, model: ModelFile, threads: int, wide_threads: int, cache: Path | None) -> None:
        self._model = model
        self._threads = threads
        self._cache = cache
        self._weights: dict[str, ort.OrtValue] = {}
        self._narrow: ort.InferenceSession | None = None
        self._wide: ort.InferenceSession | None = None
        self.wide_threads = wide_threads

    def make(self) -> "ort.InferenceSession":
        """The narrow one. Raises BundleError, or whatever ONNX Runtime raises where the model is at fault."""
        if self._narrow is None:
            import onnxruntime as ort

            try:
                with optimized(self._model, self._cache) as graph:
                    # No copies: backed by the mapped file. The sessions point to them, so they must live as long.
                    self._weights = {
                        name: ort.OrtValue.ortvalue_from_numpy(view) for name, view in graph.weights.items()
                    }
                    self._narrow = _session_of(graph, self._weights, self._threads)
                    if self.wide_threads:
                        self._wide = _session_of(graph, self._weights, self.wide_threads)
            except BundleError:
                raise
            except Exception as error:
                # The runtime raises whatever it likes. Where the model itself is at fault, so does this.
                logger.warning("%s is optimised at each start: %s", self._model.path, error)
                content = self_contained(self._model)
                self._narrow = ort.InferenceSession(content, _options(self._threads), providers=[CPU])
                # A second copy of the weights is not worth it.
                self._wide, self.wide_threads = None, 0
        return self._narrow

    def run(self, pixels: Pixels, *, wide: bool = False) -> Outputs:
        session = self.make()
        return Outputs(*(self._wide if wide and self._wide else session).run(OUTPUTS, {"pixels": pixels}))

    def shape(self) -> tuple[int, int]:
        """The height and width that the graph takes."""
        _, height, width, _ = self.make().get_inputs()[0].shape
        return height, width


def load(
    directory: Path,
    device: Device,
    threads: int,
    *,
    wide_threads: int = 0,
    winograd: bool = False,
    cache: Path | None = None,
    seal: Seal | None = None,
) -> Backend:
    """The bundle in `directory`, ready to run on `threads` CPU threads, or on `wide_threads` when alone.

    `winograd` allows Winograd's convolutions; `cache` keeps what is compiled for this machine. Raises BackendError, or
    BundleError where the file is not the sealed one or names others.
    """
    # Read as the library is loaded; it would write a device id to the home directory and call its maker.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    model = model_file(directory, FILE, seal)
    chosen = choose(device, _available, gpu_present())
    if chosen != "cpu":
        from service.backends import onnx_gpu

        try:
            return onnx_gpu.GpuBackend(model, chosen, cache)
        except BackendError as error:
            if device != "auto":
                raise
            logger.warning("the CPU is used: %s", error)
    return OnnxBackend(model, threads, wide_threads, winograd, cache)


def _available() -> list[str]:
    import onnxruntime as ort

    return list(ort.get_available_providers())


def _version() -> str:
    """Of ONNX Runtime, whichever build it is; without loading it."""
    for build in ("onnxruntime", "onnxruntime-gpu"):
        with suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(build)
    raise BackendError("ONNX Runtime is not installed.")


def choose(device: Device, available: Callable[[], list[str]], gpu: bool) -> Device:
    """The device to run on: `auto` is a GPU that is there and that the runtime knows. Raises BackendError.

    `available`: the runtime's providers, for which it is loaded; the CPU is always among them.
    """
    if device == "cpu" or (device == "auto" and not gpu):
        return "cpu"
    providers = available()
    if device == "auto":
        return "cuda" if PROVIDERS["cuda"] in providers else "cpu"
    if PROVIDERS[device] not in providers:
        raise BackendError(
            f"ONNX Runtime has no {PROVIDERS[device]} here, only {', '.join(providers)}; "
            "install onnxruntime-gpu, or set TRUEODDS_DEVICE=cpu."
        )
    return device


def _session_of(graph: OptimizedGraph, weights: "Mapping[str, ort.OrtValue]", threads: int) -> "ort.InferenceSession":
    import onnxruntime as ort

    options = _options(threads)
    # It was optimised when it was written.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(graph.folder))
    for name, value in weights.items():
        options.add_initializer(name, value)
    return ort.InferenceSession(graph.content, options, providers=[CPU])


def _options(threads: int) -> "ort.SessionOptions":
    import onnxruntime as ort

    _share_arena()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Idle threads that spin take the cores from decoding.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.use_env_allocators", "1")
    # Each batch size would get a block of its own: 14 instead of 7 MiB for cifar10 at 1 to 16, and no faster.
    options.enable_mem_pattern = False
    return options


@lru_cache
def _share_arena() -> None:
    """One arena for the activations of all models and sessions, which grows by what is asked for, not by doubling."""
    import onnxruntime as ort

    kind = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    same_as_requested = 1
    ort.create_and_register_allocator(kind, ort.OrtArenaCfg({"arena_extend_strategy": same_as_requested}))
