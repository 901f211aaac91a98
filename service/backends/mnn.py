"""MNN: Winograd's convolutions, for larger batches on the CPU.

ONNX Runtime convolves directly and comes within a tenth of what the processor can multiply; beyond that one can only
multiply less (Lavin and Gray 2015, https://arxiv.org/abs/1509.09308). The weights, transformed, are several times as
large, so that one image alone is better off without. Milliseconds an image of a residual network of 53 million
multiplications, on one core of an AMD EPYC (Zen 4), ONNX Runtime 1.32 and MNN 3.6:

    images at once     1     4     8    16    32
    ONNX Runtime    0.92  0.96  0.92  0.91  0.90
    MNN             1.11  0.64  0.55  0.44  0.48

It is not taken on trust. Its converter replaces some operators by approximations (GELU), gives others another shape,
and makes networks that crash (`Slice` with a negative step). So a converted network is first run in a process of its
own, it is served only if all its outputs agree with ONNX Runtime's, and the verdict is kept:
<cache>/mnn/<key>/graph.mnn and verdict.json. It opens files only by name, so it is given a copy of the checked bytes in
memory that nobody can write. Of its Python package `MNN.tools` is never imported: that installs another package and
calls the maker.
"""

import ctypes
import fcntl
import importlib.metadata
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from service.backends import OUTPUTS, Outputs
from service.backends.agreement import FLAGS, disagreement
from service.backends.kept import DamagedError, kept_or_made, key_of, make_private, opened
from service.backends.processor import processor
from service.errors import BackendError
from service.files import sha256
from service.images import Pixels
from service.seal import ModelFile

MODEL, GRAPH, VERDICT = "model.onnx", "graph.mnn", "verdict.json"
# Changes when what is written here, or how it is judged, changes.
FORMAT = 3
# Of outputs that are no floats.
TYPES = dict.fromkeys(FLAGS, np.bool_)
# Odd ones too: another algorithm may be chosen for each.
SIZES_COMPARED = (1, 2, 3, 5, 8, 16, 32)
CONVERT = (
    "import sys, _tools;"
    "_tools.mnnconvert(['mnnconvert', '-f', 'ONNX', '--modelFile', sys.argv[1], '--MNNModel', sys.argv[2],"
    " '--bizCode', 'trueodds'])"
)
TRY = (
    "import sys; from pathlib import Path; from service.backends.mnn import try_out;"
    "try_out(Path(sys.argv[1]), sys.argv[2], (int(sys.argv[3]), int(sys.argv[4])), int(sys.argv[5]))"
)
TIMEOUT_S = 120
# What is raised where a process ended before it had written its answers.
UNREADABLE = (ValueError, KeyError, TypeError)

_silence = threading.Lock()

Forward = Callable[[Pixels], Outputs]
# Height and width.
Size = tuple[int, int]


@dataclass(frozen=True)
class Verdict:
    """`refused` says why a network is not to be run here; None where it may be, and then its file has this SHA-256."""

    sha256: str | None
    refused: str | None


class MnnNetwork:
    """A converted network on so many threads, loaded at its first run: most processes may never need it.

    `digest` is the SHA-256 its file must have by then.
    """

    def __init__(self, graph: Path, digest: str, threads: int) -> None:
        self._graph = graph
        self._digest = digest
        self._threads = threads
        self._module: Any = None
        self._expr: Any = None

    def load(self) -> None:
        """Raises BackendError."""
        with _silenced(), _unchangeable(self._content()) as path:
            import MNN.expr
            import MNN.nn

            config = {"backend": 0, "numThread": self._threads, "precision": "high"}
            manager = MNN.nn.create_runtime_manager((config,))
            self._module = MNN.nn.load_module_from_file(path, ["pixels"], list(OUTPUTS), runtime_manager=manager)
        self._expr = MNN.expr

    def _content(self) -> bytes:
        try:
            with opened(self._graph.parent) as files:
                content = files.read(self._graph.name)
        except (OSError, DamagedError) as error:
            raise BackendError(f"{self._graph} cannot be read: {error}.") from error
        if sha256(content) != self._digest:
            raise BackendError(f"{self._graph} has changed.")
        return content

    def forward(self, pixels: Pixels) -> Outputs:
        """(N, H, W, 3) uint8 → the answers. Raises BackendError."""
        if self._module is None:
            self.load()
        # "NCHW" means that the dimensions stay in the order in which they are given.
        given = self._expr.const(pixels, list(pixels.shape), self._expr.NCHW, self._expr.uint8)
        answers = self._module.forward([given])
        if len(answers) != len(OUTPUTS):
            raise BackendError(f"MNN gave no answer for {len(pixels)} images.")
        # What is read is memory of the network's, which its next run overwrites; flags are int32.
        return _outputs(answer.read() for answer in answers)


def runtime() -> str | None:
    """The library and its version; None where it is not installed."""
    with suppress(importlib.metadata.PackageNotFoundError):
        return f"mnn {importlib.metadata.version('mnn')}"
    return None


def load(
    model: ModelFile, threads: int, expected: Forward, shape: Callable[[], Size], cache: Path | None
) -> MnnNetwork:
    """`model`, converted: from the cache, else made now, and kept there if that is possible.

    `expected` is how ONNX Runtime answers to images of `shape`, height and width. They are asked only where nothing is
    in the cache, and `shape` first, which has ONNX Runtime take the same bytes before anybody else does.
    Raises BackendError where MNN is not installed or answers differently.
    """
    library = runtime()
    if library is None:
        raise BackendError("MNN is not installed.")
    runs_on = processor()
    name = f"mnn/{key_of(str(FORMAT), model.sha256, library, runs_on.name, runs_on.features)}"
    write = partial(_write, model, expected, shape)
    try:
        with kept_or_made(cache, name, "converted networks", read, write) as (folder, verdict):
            network = _network(folder, verdict, threads)
            if cache is None or folder != cache / name:
                # Its file does not outlive this.
                network.load()
            return network
    except (OSError, DamagedError) as error:
        raise BackendError(f"there is no room to convert a network: {error}") from error


def read(folder: Path) -> Verdict:
    """Raises FileNotFoundError where there is nothing, DamagedError where it cannot be used."""
    with opened(folder) as files:
        try:
            verdict = Verdict(**json.loads(files.read(VERDICT)))
            if verdict.refused is None and files.digest(GRAPH) != verdict.sha256:
                raise DamagedError(f"{GRAPH} has changed")
        except (ValueError, TypeError, OSError) as error:
            raise DamagedError(f"it cannot be read ({error!r})") from error
    return verdict


def _network(folder: Path, verdict: Verdict, threads: int) -> MnnNetwork:
    if verdict.sha256 is None:
        raise BackendError(f"MNN does not run this network: {verdict.refused}.")
    return MnnNetwork(folder / GRAPH, verdict.sha256, threads)


def _write(model: ModelFile, expected: Forward, shape: Callable[[], Size], folder: Path) -> None:
    graph, digest, size = folder / GRAPH, "", shape()
    # A copy of what was checked, where nobody else can change it.
    (folder / MODEL).write_bytes(model.read())
    refused = _convert(folder / MODEL, graph)
    (folder / MODEL).unlink()
    make_private(folder)
    if not refused:
        with opened(folder) as files:
            digest = files.digest(GRAPH)
        refused = _disagreement(graph, digest, expected, size)
    if refused:
        graph.unlink(missing_ok=True)
    (folder / VERDICT).write_text(json.dumps(asdict(Verdict(None if refused else digest, refused))))
    make_private(folder)


def _convert(model: Path, graph: Path) -> str | None:
    """Why it cannot be converted."""
    status = _status(CONVERT, str(model), str(graph))
    if status is None:
        return f"it is not converted within {TIMEOUT_S} s"
    if status or not graph.is_file():
        return f"it cannot be converted (exit status {status})"
    return None


def _disagreement(graph: Path, digest: str, expected: Forward, shape: Size) -> str | None:
    """Why a converted network must not be run in a process that anybody needs: it crashes, or answers otherwise."""
    # In memory, for a full disk says nothing of a network.
    with os.fdopen(os.memfd_create("answers"), "rb") as answers, ThreadPoolExecutor(1) as beside:
        arguments = [str(graph), digest, *map(str, shape), str(answers.fileno())]
        trial = beside.submit(_status, TRY, *arguments, keep=(answers.fileno(),))
        right = {size: expected(_pictures(size, shape)) for size in reversed(SIZES_COMPARED)}
        status = trial.result()
        if status is None:
            return f"converted, it does not answer within {TIMEOUT_S} s"
        if status:
            return f"converted, it cannot be run (exit status {status})"
        answers.seek(0)
        try:
            told = json.load(answers)
            given = {size: _outputs(told[str(size)][name] for name in OUTPUTS) for size in SIZES_COMPARED}
        except UNREADABLE as error:
            return f"converted, its answers cannot be read ({error!r})"
    for size in SIZES_COMPARED:
        if found := disagreement(given[size], right[size]):
            return f"for {size} images at once, {found}"
    return None


def try_out(graph: Path, digest: str, shape: Size, into: int) -> None:
    """Run a converted network on each number of images at once that is compared; its answers go to a descriptor."""
    network = MnnNetwork(graph, digest, 1)
    answers = {size: network.forward(_pictures(size, shape)) for size in reversed(SIZES_COMPARED)}
    told = {size: {name: getattr(each, name).tolist() for name in OUTPUTS} for size, each in answers.items()}
    with os.fdopen(into, "w") as file:
        json.dump(told, file)


def _outputs(values: Iterable[Any]) -> Outputs:
    """Copies of what is given in the order of OUTPUTS, with the types the service relies on."""
    typed: Iterator[Any] = (
        np.array(each, TYPES.get(name, np.float32)) for name, each in zip(OUTPUTS, values, strict=True)
    )
    return Outputs(*typed)


def _status(program: str, *arguments: str, keep: tuple[int, ...] = ()) -> int | None:
    """The exit status of a Python program that may print, and crash; None where it takes too long.

    keep: descriptors that it has too.
    """
    command = [sys.executable, "-c", program, *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        return subprocess.run(  # noqa: S603  fixed programs over files of ours; no shell  # nosec B603
            command, capture_output=True, timeout=TIMEOUT_S, check=False, env=environment, pass_fds=keep
        ).returncode
    except subprocess.TimeoutExpired:
        return None


def _pictures(count: int, shape: Size) -> Pixels:
    """(count, height, width, 3): from flat to noisy, dark to light."""
    generator = np.random.default_rng(count)
    levels = generator.uniform(0, 255, (count, 1, 1, 3))
    slopes = generator.normal(0, 64, (2, count, 1, 1, 3))
    contrast = generator.uniform(0, 96, (count, 1, 1, 1))
    height, width = (np.linspace(-1, 1, length) for length in shape)
    smooth = levels + slopes[0] * height[:, None, None] + slopes[1] * width[:, None]
    noise = generator.normal(0, 1, (count, *shape, 3)) * contrast
    pixels: Pixels = np.clip(smooth + noise, 0, 255).astype(np.uint8)
    return pixels


@contextmanager
def _unchangeable(content: bytes) -> Iterator[str]:
    """A path that leads to a copy in memory, sealed against all writing, as long as the context is open."""
    descriptor = os.memfd_create("trueodds", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(content)
        # A network's weights need not be in memory thrice while they are loaded.
        del content
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


@contextmanager
def _silenced() -> Iterator[None]:
    """MNN tells of itself on standard output, where the access log goes."""
    # A second thread would take the silence for what is to be restored.
    with _silence:
        try:
            saved = os.dup(1)
        except OSError:
            # Standard output is closed.
            yield
            return
        # C's buffer, which it would empty later.
        flush = ctypes.CDLL(None).fflush
        flush(None)
        try:
            with Path(os.devnull).open("w") as nowhere:
                os.dup2(nowhere.fileno(), 1)
            yield
        finally:
            flush(None)
            os.dup2(saved, 1)
            os.close(saved)
