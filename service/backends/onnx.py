"""ONNX Runtime: the CUDA execution provider where there is one, the CPU otherwise; chosen here and reported."""

import os
from pathlib import Path

from service.backends import OUTPUTS, Device, Outputs
from service.errors import BackendError
from service.images import Pixels

FILE = "model.onnx"
PROVIDERS = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}


class OnnxBackend:
    """An ONNX Runtime session over the bundle's graph."""

    def __init__(self, path: Path, device: Device, threads: int) -> None:
        # Read as the library is loaded; it would write a device id to the home directory and call its maker.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Idle threads that spin take the cores from decoding.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers = _providers(device, ort.get_available_providers())
        if PROVIDERS["cuda"] in providers:
            # Finds the CUDA libraries that come as wheels.
            ort.preload_dlls()
        self._session = ort.InferenceSession(path, options, providers=providers)
        provider = self._session.get_providers()[0]
        if device == "cuda" and provider != PROVIDERS["cuda"]:
            raise BackendError(
                "ONNX Runtime could not start its CUDA provider; see its log, or set TRUEODDS_DEVICE=cpu."
            )
        self.device = {name: short for short, name in PROVIDERS.items()}[provider]

    def forward(self, pixels: Pixels) -> Outputs:
        return Outputs(*self._session.run(OUTPUTS, {"pixels": pixels}))


def _providers(device: Device, available: list[str]) -> list[str]:
    # In order of preference.
    devices = {"auto": ("cuda", "cpu") if gpu_present() else ("cpu",)}.get(device, (device,))
    wanted = [PROVIDERS[name] for name in devices]
    found = [provider for provider in wanted if provider in available]
    if not found:
        raise BackendError(
            f"ONNX Runtime has no {PROVIDERS[device]} here, only {', '.join(available)}; "
            "install onnxruntime-gpu, or set TRUEODDS_DEVICE=cpu."
        )
    return found


def gpu_present() -> bool:
    """Whether there is an NVIDIA device: where there is none, trying CUDA would only fill the log with its failure."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()


def load(directory: Path, device: Device, threads: int) -> OnnxBackend:
    """The bundle in `directory`, ready to run on `threads` CPU threads."""
    return OnnxBackend(directory / FILE, device, threads)
