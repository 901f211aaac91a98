"""ONNX Runtime on an NVIDIA GPU: fixed device buffers and a CUDA graph for each batch bucket, or TensorRT.

Written from the documentation of ONNX Runtime 1.32; measured on no GPU so far.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from service.backends import OUTPUTS, Device, Outputs, Placement, Plan
from service.backends.buckets import Buckets
from service.backends.external_data import self_contained
from service.backends.processor import gpu_name
from service.errors import BackendError
from service.files import Folder
from service.images import Pixels
from service.seal import ModelFile

if TYPE_CHECKING:
    import onnxruntime as ort

logger = logging.getLogger("trueodds")

CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
DTYPES = {"tensor(float)": np.float32, "tensor(bool)": np.bool_}

Provider = tuple[str, dict[str, str]]


class GpuBackend:
    """A session on one GPU. Its launches cost more than its arithmetic, so they are recorded once for each bucket."""

    plan = Plan()

    def __init__(self, model: ModelFile, device: Device, cache: Path | None = None) -> None:
        import onnxruntime as ort

        # Finds the CUDA libraries that come as wheels.
        ort.preload_dlls()
        self.device: str = device
        self._path = model.path
        self._graphs = device == "cuda"
        self._session = self._start(self_contained(model), cache)
        self.placement = Placement("onnx", device, gpu_name(), f"onnxruntime {ort.__version__}", 1, 0)
        self._buckets = Buckets(self._record)

    def forward(self, pixels: Pixels, *, alone: bool = False) -> Outputs:
        return self._buckets.forward(pixels)

    def _start(self, model: bytes, cache: Path | None) -> "ort.InferenceSession":
        try:
            return _session(model, self.device, providers(self.device, self._graphs, cache))
        except BackendError:
            raise
        except Exception as error:
            if not self._graphs:
                raise BackendError(f"ONNX Runtime cannot run {self._path} on {self.device}: {error}") from error
            # A node that only the CPU can run keeps a graph from being recorded.
            logger.warning("%s runs without CUDA graphs: %s", self._path, error)
            self._graphs = False
            return self._start(model, cache)

    def _record(self, shape: tuple[int, ...]) -> "BoundBucket":
        # Its own graph for each bucket; 0 is the runtime's own, -1 none. Recorded during the first run.
        return BoundBucket(self._session, shape, "cuda", shape[0] if self._graphs else -1)


class BoundBucket:
    """Buffers of one batch size at fixed addresses of a device, bound to a session.

    Only the device side is allocated through ONNX Runtime: its Python API gives no pinned host memory.
    """

    def __init__(self, session: "ort.InferenceSession", shape: tuple[int, ...], device: str, graph_id: int) -> None:
        import onnxruntime as ort

        self.pixels: Pixels = np.zeros(shape, np.uint8)
        allocate = ort.OrtValue.ortvalue_from_shape_and_type
        self._input = allocate(shape, np.uint8, device, 0)
        described = {output.name: output for output in session.get_outputs()}
        self._outputs = [
            allocate((shape[0], *described[name].shape[1:]), DTYPES[described[name].type], device, 0)
            for name in OUTPUTS
        ]
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input("pixels", self._input)
        for name, value in zip(OUTPUTS, self._outputs, strict=True):
            self._binding.bind_ortvalue_output(name, value)
        self._options = ort.RunOptions()
        self._options.add_run_config_entry("gpu_graph_id", str(graph_id))
        self._session = session
        # With the input in place: the first run records.
        self.run()

    def run(self) -> Outputs:
        self._input.update_inplace(self.pixels)
        self._session.run_with_iobinding(self._binding, self._options)
        # On a CPU `numpy` is a view of the buffer, which the next run overwrites.
        return Outputs(*(np.array(value.numpy()) for value in self._outputs))


def providers(device: str, graphs: bool, cache: Path | None) -> list[Provider]:
    """The execution providers of a device with their options, in order of preference."""
    cuda: dict[str, str] = {
        # The exhaustive search would be made again for each bucket.
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
        # Its ten bits of mantissa would move probabilities in the third digit; these must be the same everywhere.
        "use_tf32": "0",
        "enable_cuda_graph": "1" if graphs else "0",
    }
    if device == "cuda":
        return [(CUDA, cuda)]
    return [(TENSORRT, _tensorrt(cache)), (CUDA, cuda)]


def _tensorrt(cache: Path | None) -> dict[str, str]:
    # No profiles of shapes: they would have to name the inputs of whatever part of the graph TensorRT takes. It learns
    # them from use, so that a warm-up at the largest and the smallest batch leaves an engine for all between.
    if cache is None:
        return {}
    folder = str(_own(cache / "tensorrt"))
    return {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": folder,
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": folder,
    }


def _own(folder: Path) -> Path:
    """TensorRT reads its engines by name, unchecked: the folder must be this user's. Raises BackendError."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with Folder(folder, own=True):
            return folder
    except OSError as error:
        raise BackendError(f"TensorRT cannot keep its engines: {folder} {error}; see TRUEODDS_COMPILED.") from error


def _session(model: bytes, device: str, wanted: list[Provider]) -> "ort.InferenceSession":
    import onnxruntime as ort

    options: Any = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=wanted)
    # It falls back by itself, and only its log says so.
    if session.get_providers()[0] != wanted[0][0]:
        raise BackendError(f"ONNX Runtime could not start its {wanted[0][0]}; see its log, or set TRUEODDS_DEVICE=cpu.")
    return session
