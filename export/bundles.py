"""Write a bundle: every form of a graph, checked against it, and what is to be said of them; or nothing at all."""

import argparse
import secrets
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from export import onnx, torchscript
from export.documents import Export, write_documents
from export.graph import CalibratedGraph
from export.parity import verify
from service import bundle, tuning
from service.backends import onnx as onnx_backend
from service.backends import torchscript as torchscript_backend
from service.errors import BundleError
from service.images import InputSpec, Pixels
from service.settings import Settings, available_cores

FORMS = {
    "ONNX": (onnx.write, onnx_backend),
    "TorchScript": (torchscript.write, torchscript_backend),
}


def write(
    destination: Path, graph: CalibratedGraph, spec: InputSpec, pixels: Pixels, describe: Callable[[Path], Export]
) -> Path:
    """Write bundles/<name>/<version>, `destination`, and return it. Raises ParityError, BundleError or FileExistsError.

    The forms must agree with the graph on `pixels`. `describe` is given the folder in which they lie by then.
    """
    return stage(destination, partial(_write_forms, graph, spec, pixels), describe)


def stage(destination: Path, write_forms: Callable[[Path], None], describe: Callable[[Path], Export]) -> Path:
    """Have the forms written into a folder, then what is to be said of them, and only then call it `destination`.

    Raises BundleError, FileExistsError, or what the two raise.
    """
    check_new(destination)
    destination.parent.mkdir(parents=True, exist_ok=True)
    staging = destination.parent / f".{destination.name}-{secrets.token_hex(4)}"
    try:
        # Made in here, or Ctrl-C might come before anybody would remove it.
        staging.mkdir(0o700)
        write_forms(staging)
        write_documents(staging, describe(staging))
        bundle.load(staging)
        staging.chmod(0o755)
        staging.rename(destination)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    print(f"wrote {destination}")
    _tune(bundle.load(destination))
    return destination


def _write_forms(graph: CalibratedGraph, spec: InputSpec, pixels: Pixels, folder: Path) -> None:
    for form, (write_form, backend) in FORMS.items():
        write_form(graph, spec, folder / backend.FILE)
        worst = verify(graph, backend.load(folder, "cpu", available_cores()), pixels, form)
        print(f"{form}: {len(pixels):,} images agree, logits within {worst:.1e}")


def next_version(bundles: Path, name: str) -> str:
    """The newest version of a model with its last part one higher; 1 where there is none."""
    try:
        *parts, last = bundle.newest(bundles, (name,))[name].name.split(".")
    except BundleError:
        return "1"
    return ".".join([*parts, str(int(last) + 1)])


def version(text: str) -> str:
    """For argparse: what would be served."""
    if not bundle.VERSION.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} would never be served; a version is like 1 or 1.2")
    return text


def check_new(destination: Path) -> None:
    """Raises FileExistsError: a version, once there, stays as it is."""
    if destination.exists():
        raise FileExistsError(f"{destination} exists; choose another --version")


def _tune(found: bundle.Bundle) -> None:
    # As the service runs it here by default; what else there is, python -m service.tuning measures. Without its seal:
    # nobody vouches yet for a bundle that was made this moment.
    settings = Settings()
    threads, wide_threads = settings.thread_count, tuning.wide_threads(settings)
    winograd = settings.winograd and found.manifest.variant is None
    backends = [
        backend.load(found.directory, "cpu", threads, wide_threads=wide_threads, winograd=winograd)
        for _, backend in FORMS.values()
        if backend.FILE in found.manifest.files
    ]
    print(tuning.table(tuning.tune(found, backends)))
