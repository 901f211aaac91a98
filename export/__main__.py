"""Export a trained network as a bundle: `python -m export <model>`. Nothing is written unless every form agrees.

`python -m export sign` signs one.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch

from export import onnx, sign, torchscript
from export.calibrate import fit, fit_strangeness
from export.documents import Export, write_documents
from export.gates import CalibrationError
from export.graph import CalibratedGraph
from export.parity import ParityError, run, verify
from export.promises import PROMISES, Promises
from export.splits import Tested, observe
from models import MODELS, weights_path
from models.datasets import DATASETS
from models.formats import DAMAGE, DataError
from models.network import Network
from service import bundle, tuning
from service.backends import onnx as onnx_backend
from service.backends import torchscript as torchscript_backend
from service.errors import BundleError
from service.settings import Settings, available_cores

BUNDLES = Path("models/bundles")
FORMS = {
    "ONNX": (onnx.write, onnx_backend),
    "TorchScript": (torchscript.write, torchscript_backend),
}


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["sign"]:
        return sign.main(argv[1:])
    parser = argparse.ArgumentParser(prog="python -m export", description=__doc__)
    parser.add_argument("name", choices=sorted(MODELS))
    parser.add_argument("--version", default="1", help="the version to write; an existing one is never overwritten")
    parser.add_argument("--bundles", type=Path, default=BUNDLES, help=f"where bundles are kept (default: {BUNDLES})")
    parser.add_argument("--weights", type=Path, help="trained weights other than the committed ones")
    arguments = parser.parse_args(argv)
    try:
        export(arguments.name, arguments.version, arguments.bundles, arguments.weights or weights_path(arguments.name))
    except (ParityError, CalibrationError, BundleError, DataError, FileExistsError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 1
    return 0


def export(name: str, version: str, bundles: Path, weights: Path) -> Path:
    """Write bundles/<name>/<version> and return its path. Raises ParityError, CalibrationError, DataError
    or FileExistsError.
    """
    destination = bundles / name / version
    if destination.exists():
        raise FileExistsError(f"{destination} exists; choose another --version")
    recipe, promises = MODELS[name], PROMISES.get(name, Promises())
    spec = DATASETS[recipe.dataset].input

    net = load_network(recipe.build(), weights)
    print("running the network over images it has not seen")
    seen = observe(net, recipe.dataset)
    fitted = fit(seen.held, promises)
    strange = fit_strangeness(net, promises.ood, seen.training, seen.conformal)
    graph = CalibratedGraph(net, spec, fitted.answering(strange)).eval()
    destination.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{version}-", dir=destination.parent))
    try:
        for form, (write, backend) in FORMS.items():
            write(graph, spec, staging / backend.FILE)
            worst = verify(graph, backend.load(staging, "cpu", available_cores()), seen.test_pixels, form)
            print(f"{form}: {len(seen.test_pixels):,} test images agree, logits within {worst:.1e}")
        training = json.loads(weights.with_suffix(".json").read_text())
        # The figures published are those of the written file itself.
        answers = run(onnx_backend.load(staging, "cpu", 1), seen.test_pixels, batch_size=500)
        tested = Tested(answers.logits, answers.probabilities)
        labels = list(DATASETS[recipe.dataset].labels)
        write_documents(
            staging, Export(name, version, labels, spec, seen.held, tested, fitted, strange.ood, training)
        )
        bundle.load(staging)
        staging.chmod(0o755)
        staging.rename(destination)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    print(f"wrote {destination}")
    _tune(bundle.load(destination))
    return destination


def _tune(found: bundle.Bundle) -> None:
    # As the service runs it here by default; what else there is, python -m service.tuning measures. Without its seal:
    # nobody vouches yet for a bundle that was made this moment.
    settings = Settings()
    threads, wide_threads = settings.thread_count, tuning.wide_threads(settings)
    backends = [
        backend.load(found.directory, "cpu", threads, wide_threads=wide_threads, winograd=settings.winograd)
        for _, backend in FORMS.values()
    ]
    print(tuning.table(tuning.tune(found, backends)))


def load_network(net: Network, weights: Path) -> Network:
    """Put trained weights into a network. Raises DataError."""
    record = weights.with_suffix(".json")
    for path in (weights, record):
        if not path.is_file():
            raise DataError(f"there is no {path}; python -m models.train writes it")
    try:
        net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    except DAMAGE as error:
        raise DataError(f"{weights} does not hold the weights of this network; train it again") from error
    net.eval()
    return net


if __name__ == "__main__":
    sys.exit(main())
