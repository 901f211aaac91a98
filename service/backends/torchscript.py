"""TorchScript: the bundle's traced module, on a GPU where there is one.

The only part of the service that needs torch.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from service.backends import OUTPUTS, Device, Outputs
from service.errors import BackendError
from service.images import Pixels

if TYPE_CHECKING:
    import torch

FILE = "model.torchscript.pt"


class TorchScriptBackend:
    """A frozen TorchScript module run in inference mode."""

    def __init__(self, path: Path, device: Device, threads: int) -> None:
        try:
            import torch
        except ImportError as error:
            raise BackendError(
                "The TorchScript backend needs torch: pip install torch, or set TRUEODDS_BACKEND=onnx."
            ) from error

        if device == "cuda" and not torch.cuda.is_available():
            raise BackendError("torch finds no GPU; set TRUEODDS_DEVICE=cpu or auto.")
        self.device = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
        torch.set_num_threads(threads)
        self._torch = torch
        self._module = _load_module(path, self.device)

    def forward(self, pixels: Pixels) -> Outputs:
        torch = self._torch
        with torch.inference_mode():
            outputs = self._module(torch.from_numpy(pixels).to(self.device))
        return Outputs(*(outputs[OUTPUTS.index(name)].cpu().numpy() for name in OUTPUTS))


@contextmanager
def deprecation_known() -> Iterator[None]:
    """Silence exactly torch 2.13's notice that TorchScript is deprecated: it is offered here for those who run it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`?torch\.jit", category=DeprecationWarning)
        yield


def _load_module(path: Path, device: str) -> "torch.jit.ScriptModule":
    import torch

    with deprecation_known():
        module: torch.jit.ScriptModule = torch.jit.load(str(path), map_location=device)
    return module.eval()


def load(directory: Path, device: Device, threads: int) -> TorchScriptBackend:
    """The bundle in `directory`, ready to run on `threads` CPU threads."""
    return TorchScriptBackend(directory / FILE, device, threads)
