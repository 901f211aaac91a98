"""Wrap any ONNX classifier as a bundle: `python -m loadtest.foreign model.onnx --name other --labels 10 …`.

So that servers can be compared on the very model their rivals are measured with. It is for benchmarks, not for use:
nothing is known of the data the model was trained on, so nothing is calibrated, and the bundle says so.
"""

import argparse
import math
import platform
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from export.documents import write_json
from export.parity import run
from loadtest.wrapping import Foreign, NotAClassifier
from service import bundle
from service.backends import Outputs
from service.backends import onnx as onnx_backend
from service.backends.agreement import LOGIT_TOLERANCE, PROBABILITY_TOLERANCE
from service.bundle import MANIFEST, VERSION, digest
from service.documents import Manifest
from service.errors import BundleError
from service.files import sha256
from service.images import InputSpec, Pixels

# Coloured blocks along each side of a synthetic picture.
BLOCKS = 4
PARITY_IMAGES = 64
NOTE = "for benchmarks, not for use: nothing is known of the network's training, and nothing was calibrated"
CARD = """# {name}, version {version}

For benchmarks, not for use. The network is `{source}` (SHA-256 `{sha256}`) as it came, classes {labels}.

It has no calibration: nothing is known of the data it was trained on, so nothing of what it answers is a promise.
"""


def wrap(model: Foreign, request: "Request", bundles: Path) -> Path:
    """Write bundles/<name>/<version> and return its path. Raises NotAClassifier, BundleError or FileExistsError."""
    destination = bundles / request.name / request.version
    if destination.exists():
        raise FileExistsError(f"{destination} exists; choose another --version")
    pixels = synthetic(np.random.default_rng(0), PARITY_IMAGES, request.input)
    n_classes = model.answers(pixels, request.input)[1].shape[1]
    if n_classes != len(request.labels):
        raise NotAClassifier(f"the model tells {n_classes} classes apart, but there are {len(request.labels)} labels")
    destination.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{request.version}-", dir=destination.parent))
    try:
        onnx.save(model.wrapped(request.input), staging / onnx_backend.FILE)
        verify(model, request.input, run(onnx_backend.load(staging, "cpu", 1), pixels, 1), pixels)
        write_documents(staging, model, request)
        bundle.load(staging)
        staging.chmod(0o755)
        staging.rename(destination)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return destination


@dataclass(frozen=True)
class Request:
    """What the command line says of the bundle."""

    name: str
    version: str
    labels: list[str]
    input: InputSpec


def synthetic(rng: np.random.Generator, n: int, spec: InputSpec) -> Pixels:
    """Coloured blocks under noise: (n, H, W, 3) uint8."""
    rows, columns = (np.arange(side) * BLOCKS // side for side in (spec.height, spec.width))
    blocks = rng.integers(0, 192, (n, BLOCKS, BLOCKS, 3), np.uint8)[:, rows[:, None], columns]
    return np.asarray(blocks + rng.integers(0, 64, blocks.shape, np.uint8))


def verify(model: Foreign, spec: InputSpec, answers: Outputs, pixels: Pixels) -> None:
    """Raises NotAClassifier when the wrapped graph does not answer as the model does."""
    output, logits = model.answers(pixels, spec)
    pairs = [(answers.logits, logits, LOGIT_TOLERANCE)]
    if model.logits != model.output:
        pairs.append((answers.probabilities, output, PROBABILITY_TOLERANCE))
    for ours, theirs, tolerance in pairs:
        gap = float(np.abs(ours - theirs).max())
        if not gap <= tolerance:
            raise NotAClassifier(
                f"wrapped, the model answers differently, by {gap:.2e}; this is a fault of the wrapping"
            )


def write_documents(directory: Path, model: Foreign, request: Request) -> None:
    """The model card and, last, the manifest that vouches for all."""
    source = sha256(model.path.read_bytes())
    card = CARD.format(
        name=request.name,
        version=request.version,
        source=model.path.name,
        sha256=source,
        labels=", ".join(request.labels),
    )
    (directory / "MODEL_CARD.md").write_text(card)
    manifest = Manifest(
        schema_version=1,
        name=request.name,
        version=request.version,
        labels=request.labels,
        input=request.input,
        files={path.name: digest(path) for path in sorted(directory.iterdir())},
        training={"note": NOTE, "source": model.path.name, "source_sha256": source},
        created_by={"python": platform.python_version()}
        | {package.__name__: package.__version__ for package in (np, onnx, onnxruntime)},
    )
    write_json(directory / MANIFEST, manifest.model_dump(mode="json"))


def main(argv: list[str] | None = None) -> int:
    options = _options(argv)
    try:
        model = Foreign.read(options.model, options.size)
        spec = InputSpec("photo", *model.size, options.mean, options.std)
        written = wrap(model, Request(options.name, options.version, options.labels, spec), options.into)
    except (NotAClassifier, BundleError, FileExistsError) as error:
        print(f"foreign: {error}", file=sys.stderr)
        return 1
    print(f"wrote {written}")
    return 0


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.foreign", description="Wrap any ONNX classifier as a bundle, to compare servers on it."
    )
    parser.add_argument("model", type=Path, help="one float input (N, 3, H, W), one output (N, C)")
    parser.add_argument("--name", type=_name, required=True)
    parser.add_argument("--version", type=_version, default="1", help="default: %(default)s")
    parser.add_argument("--labels", type=_labels, required=True, help="how many classes, or their names: a,b,c")
    parser.add_argument("--mean", type=_channels, required=True, help="r,g,b of pixels in [0, 1]")
    parser.add_argument("--std", type=_deviations, required=True, help="r,g,b likewise")
    parser.add_argument("--size", type=_sides, help="HxW, where the model takes several")
    parser.add_argument("--into", type=Path, required=True, help="the folder of bundles to write it to")
    return parser.parse_args(argv)


def _name(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no name of lower-case letters and digits")
    return text


def _version(text: str) -> str:
    if not VERSION.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no version like 1 or 1.2")
    return text


def _labels(text: str) -> list[str]:
    """Named, or c0, c1 and so on where only their number is known."""
    labels = [f"c{number}" for number in range(int(text))] if text.isdecimal() else text.split(",")
    if len(labels) < 2 or len(set(labels)) < len(labels) or not all(labels):
        raise argparse.ArgumentTypeError("two or more different labels are needed")
    return labels


def _channels(text: str) -> tuple[float, ...]:
    try:
        channels = tuple(map(float, text.split(",")))
    except ValueError:
        channels = ()
    if len(channels) != 3 or not all(map(math.isfinite, channels)):
        raise argparse.ArgumentTypeError(f"{text!r} is not three numbers")
    return channels


def _deviations(text: str) -> tuple[float, ...]:
    if min(_channels(text)) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not three numbers above 0")
    return _channels(text)


def _sides(text: str) -> tuple[int, int]:
    if not (sides := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no size like 32x32")
    return int(sides[1]), int(sides[2])


if __name__ == "__main__":
    sys.exit(main())
