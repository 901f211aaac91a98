"""Export a trained network as a bundle: `python -m export <model>`. Nothing is written unless every form agrees.

`python -m export sign` signs one; `python -m export recalibrate` calibrates one anew, by labels of its answers;
`python -m export shift` measures one beyond its distribution; `python -m export cards` writes model cards anew;
`python -m export zoo` compares all networks; `python -m export variant` makes one smaller or faster.
"""

import argparse
import sys
from pathlib import Path

from export import cards, recalibrate, shift, sign, variant, zoo
from export.bundles import check_new, next_version, version, write
from export.calibrate import fit, fit_strangeness
from export.documents import Export
from export.gates import CalibrationError
from export.graph import CalibratedGraph
from export.parity import ParityError, run
from export.promises import OWN, PROMISES, carried
from export.splits import Tested, observe
from models.formats import DataError
from models.networks import load_network, names, record, task, weights_of
from service.backends import onnx as onnx_backend
from service.errors import BundleError
from service.settings import BUNDLES

COMMANDS = {
    "cards": cards.main,
    "recalibrate": recalibrate.main,
    "shift": shift.main,
    "sign": sign.main,
    "variant": variant.main,
    "zoo": zoo.main,
}


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in COMMANDS:
        return COMMANDS[argv[0]](argv[1:])
    parser = argparse.ArgumentParser(prog="python -m export", description=__doc__)
    parser.add_argument("name", choices=names())
    parser.add_argument("--version", type=version, help="the version to write (default: the one after the newest)")
    parser.add_argument("--bundles", type=Path, default=BUNDLES, help=f"where bundles are kept (default: {BUNDLES})")
    parser.add_argument("--weights", type=Path, help="trained weights other than the committed ones")
    arguments = parser.parse_args(argv)
    try:
        wanted = arguments.version or next_version(arguments.bundles, arguments.name)
        export(arguments.name, wanted, arguments.bundles, arguments.weights or weights_of(arguments.name))
    except (ParityError, CalibrationError, BundleError, DataError, FileExistsError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 1
    return 0


def export(name: str, version: str, bundles: Path, weights: Path) -> Path:
    """Write bundles/<name>/<version> and return its path. Raises ParityError, CalibrationError, DataError
    or FileExistsError.
    """
    destination = bundles / name / version
    check_new(destination)
    learnt = task(name)
    spec, labels = learnt.spec, list(learnt.labels)
    net = load_network(learnt.recipe.build(), weights)
    training = record(learnt, weights)
    print("running the network over images it has not seen")
    seen = observe(net, learnt)
    promises = carried(PROMISES.get(name, OWN), len(seen.held.conformal.labels), "images")
    fitted = fit(seen.held, promises)
    strange = fit_strangeness(net, promises.ood, seen.training, seen.conformal)

    def describe(directory: Path) -> Export:
        # The figures published are those of the written file itself.
        answers = run(onnx_backend.load(directory, "cpu", 1), seen.test_pixels, batch_size=500)
        tested = Tested(answers.logits, answers.probabilities)
        return Export(name, version, labels, spec, seen.held, tested, fitted, strange.ood, training)

    graph = CalibratedGraph(net, spec, fitted.answering(strange)).eval()
    return write(destination, graph, spec, seen.test_pixels, describe)


if __name__ == "__main__":
    sys.exit(main())
