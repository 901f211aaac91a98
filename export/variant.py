"""A variant of a bundle, smaller or faster: `python -m export variant int8 <model>`, or fp16, which is for GPUs.

The network computes in fewer bits; the calibrated answer behind it stays in float32, but is fitted anew on what this
network makes of the held-out images. It becomes a bundle of its own, <name>-int8/<version>, with its own gates and
figures, which TRUEODDS_VARIANT=int8 serves under the model's name; nothing is left where a gate fails.
"""

import argparse
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto

from export import gates, original
from export import onnx as onnx_form
from export.bundles import check_new, stage, version
from export.calibrate import ID_TPR, Fitted, Strangeness, fit
from export.conversion import CONVERSIONS
from export.documents import Export
from export.gates import CalibrationError
from export.graph import CalibratedGraph
from export.markdown import fine, percent
from export.original import calibration_of, strangeness_of
from export.parity import ParityError, run
from export.parts import network_of, rejoined
from export.promises import OWN, PROMISES, Promises, carried
from export.splits import HeldOut, Split, Tested
from models.datasets import indices_digest
from models.formats import DataError
from models.networks import names, task, weights_of
from models.task import Task
from service import bundle
from service.audit import GRAPH
from service.backends import Floats, Outputs
from service.backends import onnx as onnx_backend
from service.backends.agreement import LOGIT_TOLERANCE
from service.bundle import Bundle, folder_name
from service.documents import Calibration, Variant, VariantPrecision
from service.errors import BundleError
from service.images import Pixels
from service.settings import BUNDLES

# Images that the network was trained on, by which the ranges of activations are known.
RANGE_IMAGES = 512
BATCH_SIZE = 100


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m export variant", description=__doc__)
    parser.add_argument("precision", choices=sorted(CONVERSIONS))
    parser.add_argument("name", choices=names())
    parser.add_argument("--version", type=version, help="the version to write (default: that of the newest bundle)")
    parser.add_argument("--bundles", type=Path, default=BUNDLES, help=f"where bundles are kept (default: {BUNDLES})")
    parser.add_argument("--weights", type=Path, help="the network's weights other than the committed ones")
    given = parser.parse_args(argv)
    try:
        found = bundle.discover(given.bundles, (given.name,))[given.name]
        wanted = Wanted(given.precision, given.version or found.manifest.version)
        make(found, given.weights or weights_of(given.name), wanted)
    except (CalibrationError, ParityError, BundleError, DataError, FileExistsError) as error:
        print(f"variant: {error}", file=sys.stderr)
        return 1
    return 0


@dataclass(frozen=True)
class Wanted:
    """What the variant is to be."""

    precision: VariantPrecision
    version: str


def make(found: Bundle, weights: Path, wanted: Wanted) -> Path:
    """Write the variant beside `found` and return its path.

    Raises CalibrationError where a gate fails, ParityError, BundleError, DataError or FileExistsError.
    """
    name, manifest, served = found.manifest.name, found.manifest, calibration_of(found)
    destination = found.directory.parent.parent / folder_name(name, wanted.precision) / wanted.version
    check_new(destination)
    net, learnt = original.network_of(found, weights), task(name)
    model = onnx.load(found.directory / GRAPH)
    network = CONVERSIONS[wanted.precision](network_of(model), learnt.part("train").some(RANGE_IMAGES).pixels())
    print("running the variant over images it has not seen")
    seen = Observed.of(rejoined(network, model), learnt)
    promises = carried(PROMISES.get(name, OWN), len(seen.held.conformal.labels), "images")
    fitted = _fit(seen.held, served, promises)
    strange = _strangeness(found, seen.conformal)
    graph = CalibratedGraph(net, manifest.input, fitted.answering(strange)).eval()

    def write_forms(folder: Path) -> None:
        path = folder / onnx_backend.FILE
        onnx_form.write(graph, manifest.input, path)
        onnx.save(rejoined(network, onnx.load(path)), path)

    def describe(folder: Path) -> Export:
        # The figures published are those of the written file itself.
        answers = _run(folder, learnt.part("test").pixels())
        _check_same(answers.logits, seen.held.eval.logits)
        variant = Variant(precision=wanted.precision, made_from=found.seal.pin)
        tested = Tested(answers.logits, answers.probabilities)
        return Export(
            name, wanted.version, manifest.labels, manifest.input, seen.held, tested, fitted, strange.ood,
            manifest.training, variant,
        )  # fmt: skip

    stage(destination, write_forms, describe)
    print(side_by_side({"float32": found, wanted.precision: bundle.load(destination)}))
    return destination


@dataclass(frozen=True)
class Observed:
    """A variant at work on the images that no network was trained on; conformal is all that it answers to these."""

    held: HeldOut
    conformal: Outputs

    @classmethod
    def of(cls, model: ModelProto, task: Task) -> "Observed":
        fit, conformal, test = (task.part(split) for split in ("fit", "conformal", "test"))
        with tempfile.TemporaryDirectory(prefix="trueodds-") as folder:
            onnx.save(model, Path(folder) / onnx_backend.FILE)
            answers = [_run(Path(folder), part.pixels()) for part in (fit, conformal, test)]
        # Of a data set of the zoo all of the published test images.
        of_test = task.digests.get("test") or indices_digest(np.arange(len(test.labels)))
        held = HeldOut(
            Split(answers[0].logits, fit.labels, task.digests["fit"]),
            Split(answers[1].logits, conformal.labels, task.digests["conformal"]),
            Split(answers[2].logits, test.labels, of_test),
        )
        return cls(held, answers[1])


def side_by_side(bundles: dict[str, Bundle]) -> str:
    """Accuracy, NLL, ECE beside what chance alone gives, and bytes, a line for each."""
    lines = [f"{'':8} {'accuracy':>9} {'NLL':>8} {'ECE-15':>7} {'null p99':>8} {'bytes':>11}"]
    for title, found in bundles.items():
        after, null = calibration_of(found).metrics.after, calibration_of(found).metrics.null
        size = (found.directory / GRAPH).stat().st_size
        lines.append(
            f"{title:8} {after.accuracy:9.2%} {fine(after.nll):>8} {percent(after.ece_15):>7} "
            f"{percent(null.ece_15_p99):>8} {size:11,}"
        )
    return "\n".join(lines)


def _fit(held: HeldOut, served: Calibration, promises: Promises) -> Fitted:
    """With the gate of variants. Raises CalibrationError."""
    fitted = fit(held, promises)
    right = fitted.calibrated(held.eval.logits).argmax(1) == held.eval.labels
    kept = gates.accuracy_kept(served.metrics.after.accuracy, float(right.mean()))
    gates.require([kept])
    return replace(fitted, verdicts=(*fitted.verdicts, kept))


def _strangeness(found: Bundle, conformal: Outputs) -> Strangeness:
    """By the same score, with a threshold that as many ordinary images stay under."""
    known = strangeness_of(found)
    threshold = float(np.quantile(conformal.ood_score, ID_TPR))
    return replace(known, ood=known.ood.model_copy(update={"threshold": threshold, "id_tpr": ID_TPR}))


def _run(folder: Path, images: Pixels) -> Outputs:
    return run(onnx_backend.load(folder, "cpu", 1), images, BATCH_SIZE)


def _check_same(answered: Floats, expected: Floats) -> None:
    """Raises ParityError where the file has another network than the calibration was fitted on. Both (N, C)."""
    gap = float(np.abs(answered - expected).max())
    if not gap <= LOGIT_TOLERANCE:
        raise ParityError(f"logits of the written file differ by {gap:.1e}: export the float32 bundle again")


if __name__ == "__main__":
    sys.exit(main())
