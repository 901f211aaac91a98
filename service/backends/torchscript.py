"""TorchScript: the bundle's traced module, on a GPU where there is one.

The only part of the service that needs torch, and the only form of a network that can carry code: it is not even opened
unless somebody vouches for it.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from service.backends import OUTPUTS, Backend, Device, Outputs, Placement, Plan
from service.backends.buckets import Buckets
from service.backends.processor import processor
from service.errors import BackendError
from service.images import Pixels
from service.seal import ModelFile, Seal, check_vouched, model_file

if TYPE_CHECKING:
    import torch

FILE = "model.torchscript.pt"


class TorchScriptBackend:
    """A frozen TorchScript module run in inference mode on the CPU."""

    device = "cpu"

    def __init__(self, model: ModelFile, threads: int, wide_threads: int = 0) -> None:
        import torch

        if wide_threads <= threads:
            wide_threads = 0
        self._torch = torch
        self._threads = self._set_threads(threads)
        self._wide_threads = wide_threads
        with deprecation_known():
            # oneDNN's layouts and fusions. Microseconds an image at batch 1 and 4, one core of an AMD EPYC (Zen 4),
            # torch 2.13: cifar10 5985 → 5005, 3334 → 2894; digits 277 → 283, 144 → 105.
            self._module = torch.jit.optimize_for_inference(_load_module(model, "cpu"))
        self.placement = Placement(
            "torchscript", "cpu", processor().name, f"torch {torch.__version__}", threads, wide_threads
        )
        self.plan = Plan(wide_from=1)

    def forward(self, pixels: Pixels, *, alone: bool = False) -> Outputs:
        torch = self._torch
        wide_from = self.plan.wide_from
        wide = alone and self._wide_threads and wide_from is not None and len(pixels) >= wide_from
        wanted = self._wide_threads if wide else self._threads
        # The setting is the whole process's, so another model may have changed it.
        if torch.get_num_threads() != wanted:
            self._set_threads(wanted)
        with torch.inference_mode():
            outputs = self._module(torch.from_numpy(pixels))
        return Outputs(*(outputs[OUTPUTS.index(name)].numpy() for name in OUTPUTS))

    def _set_threads(self, threads: int) -> int:
        self._torch.set_num_threads(threads)
        return threads


class TorchScriptGpuBackend:
    """The same on a GPU, recorded as a CUDA graph for each batch bucket. Measured on no GPU so far."""

    device = "cuda"
    plan = Plan()

    def __init__(self, model: ModelFile) -> None:
        import torch

        self._module = _load_module(model, "cuda")
        self.placement = Placement(
            "torchscript", "cuda", torch.cuda.get_device_name(), f"torch {torch.__version__}", 1, 0
        )
        self._buckets = Buckets(lambda shape: _GraphBucket(self._module, shape))

    def forward(self, pixels: Pixels, *, alone: bool = False) -> Outputs:
        return self._buckets.forward(pixels)


class _GraphBucket:
    """One batch size: pinned host buffers, fixed device buffers, and the CUDA graph that leads from one to the other.

    The copies are part of the graph, so that a batch is one launch and one wait.
    """

    # CUDA libraries choose and allocate in the first runs, which must not be recorded.
    WARM_UP_RUNS = 3

    def __init__(self, module: "torch.jit.ScriptModule", shape: tuple[int, ...]) -> None:
        import torch

        self._torch = torch
        host = torch.zeros(shape, dtype=torch.uint8, pin_memory=True)
        self.pixels: Pixels = host.numpy()
        given = torch.zeros(shape, dtype=torch.uint8, device="cuda")
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.inference_mode():
            with torch.cuda.stream(side):
                answers = [module(given) for _ in range(self.WARM_UP_RUNS)][-1]
            side.synchronize()
            self._answers = [torch.empty_like(answer, device="cpu", pin_memory=True) for answer in answers]
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                given.copy_(host, non_blocking=True)
                for held, answer in zip(self._answers, module(given), strict=True):
                    held.copy_(answer, non_blocking=True)
        # A graph knows addresses only: what lies there must live as long as it does.
        self._held = (host, given)

    def run(self) -> Outputs:
        self._graph.replay()
        self._torch.cuda.current_stream().synchronize()
        return Outputs(*(self._answers[OUTPUTS.index(name)].numpy().copy() for name in OUTPUTS))


@contextmanager
def deprecation_known() -> Iterator[None]:
    """Silence exactly torch 2.13's notice that TorchScript is deprecated: it is offered here for those who run it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`?torch\.jit", category=DeprecationWarning)
        yield


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

    Raises BackendError, or BundleError where the file is not the sealed one or nobody vouches for it.
    """
    if seal is not None:
        check_vouched([seal])
    try:
        import torch
    except ImportError as error:
        raise BackendError(
            "The TorchScript backend needs torch: pip install torch, or set TRUEODDS_BACKEND=onnx."
        ) from error

    if device == "tensorrt":
        raise BackendError("TensorRT runs ONNX only: set TRUEODDS_BACKEND=onnx, or TRUEODDS_DEVICE=cuda.")
    if device == "cuda" and not torch.cuda.is_available():
        raise BackendError("torch finds no GPU; set TRUEODDS_DEVICE=cpu or auto.")
    if device != "cpu" and torch.cuda.is_available():
        return TorchScriptGpuBackend(_sealed(directory, seal))
    return TorchScriptBackend(_sealed(directory, seal), threads, wide_threads)


def _sealed(directory: Path, seal: Seal | None) -> ModelFile:
    if not ((directory / FILE).is_file() if seal is None else FILE in seal.digests):
        raise BackendError(
            f"There is no {directory / FILE}: this bundle has no TorchScript form; set TRUEODDS_BACKEND=onnx."
        )
    return model_file(directory, FILE, seal)


def _load_module(model: ModelFile, device: str) -> "torch.jit.ScriptModule":
    import torch

    content = model.read()
    try:
        with deprecation_known():
            # torch has its own reader of what is pickled in the archive: Python's is not involved.
            module: torch.jit.ScriptModule = torch.jit.load(BytesIO(content), map_location=device)
    except RuntimeError as error:
        raise BackendError(f"{model.path} is no TorchScript archive; export the bundle again.") from error
    # Before it is frozen, for then no parameter has a name.
    frozen: torch.jit.ScriptModule = torch.jit.freeze(module.eval())
    return frozen
