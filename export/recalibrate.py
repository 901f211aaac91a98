"""Calibrate a served model anew, by labels that came for its answers: `python -m export recalibrate <model>`.

Labels of random answers in distribution are split in three: to fit, for thresholds, and to see whether the new
calibration passes its gates. If it does, it becomes a new version of the bundle; the old one stays as it is. Workers
take it at the next start, or at once by `kill -HUP` of the service, which loses no request.
"""

import argparse
import hashlib
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from export.bundles import check_new, next_version, version, write
from export.calibrate import Fitted, fit
from export.documents import Export
from export.gates import CalibrationError
from export.graph import CalibratedGraph
from export.original import calibration_of, compared, network_of, strangeness_of
from export.parity import ParityError
from export.promises import OWN, PROMISES, Promises, carried
from export.splits import HeldOut, Split, Tested
from models.formats import DataError
from models.networks import names, weights_of
from service import bundle, stores
from service.bundle import Bundle
from service.calibration import expected_calibration_error
from service.calibrators import probabilities
from service.documents import Calibration
from service.errors import BundleError, SettingError
from service.settings import BUNDLES, Settings
from service.stores import LabelledAnswers, StoreError

# Of the labels, to fit and for thresholds; the rest is for the gates.
SHARES = (0.4, 0.3)
# With fewer the gates could not tell a good calibration from a bad one.
LEAST = 200


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m export recalibrate", description=__doc__)
    parser.add_argument("name", choices=names())
    parser.add_argument("--version", type=version, help="the version to write (default: the one after the newest)")
    parser.add_argument("--bundles", type=Path, default=BUNDLES, help=f"where bundles are kept (default: {BUNDLES})")
    parser.add_argument("--weights", type=Path, help="the network's weights other than the committed ones")
    parser.add_argument("--feedback", help="where labels are kept (default: as TRUEODDS_FEEDBACK has it)")
    parser.add_argument("--risk", type=_share, help="of the answers not abstained from, how many may be wrong")
    parser.add_argument("--vector", action="store_true", help="a weight for each class too, which may change answers")
    given = parser.parse_args(argv)
    try:
        url = given.feedback or Settings.from_environment().feedback
        found = bundle.discover(given.bundles, (given.name,))[given.name]
        wanted = Wanted(given.version or next_version(given.bundles, given.name), given.risk, given.vector)
        recalibrate(found, given.weights or weights_of(given.name), stores.read(url, given.name), wanted)
    except (CalibrationError, ParityError, BundleError, DataError, StoreError, SettingError, FileExistsError) as error:
        print(f"recalibrate: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("recalibrate: stopped", file=sys.stderr)
        return 130
    return 0


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is no share between 0 and 1")
    return value


@dataclass(frozen=True)
class Wanted:
    """What the new bundle is to be: its version, another risk than its model promises, whether answers may change."""

    version: str
    risk: float | None = None
    vector: bool = False

    def of(self, promises: Promises) -> Promises:
        promises = replace(promises, opt_in=promises.opt_in | ({"vector"} if self.vector else set()))
        return promises if self.risk is None else replace(promises, risk=self.risk, risks=())


def recalibrate(found: Bundle, weights: Path, labelled: LabelledAnswers, wanted: Wanted) -> Path:
    """Write the bundle of a new calibration beside `found` and return its path.

    Raises CalibrationError where there are too few labels or a gate fails, and what export.bundles.write raises.
    """
    name, served = found.manifest.name, calibration_of(found)
    destination = found.directory.parent / wanted.version
    check_new(destination)
    held = split(labelled, served.id)
    promises = wanted.of(PROMISES.get(name, OWN))
    fitted = fit(held, carried(promises, len(held.conformal.labels), "labels"))
    _tell(held.eval, served, fitted)

    # What is strange does not depend on the calibration.
    answering = fitted.answering(strangeness_of(found))
    graph = CalibratedGraph(network_of(found, weights), found.manifest.input, answering).eval()
    tested = Tested(held.eval.logits, fitted.calibrated(held.eval.logits))
    record = found.manifest.training | {"recalibrated": _record(labelled, served)}
    export = Export(
        name, wanted.version, found.manifest.labels, found.manifest.input, held, tested, fitted, served.ood, record
    )
    return write(destination, graph, found.manifest.input, compared(found), lambda directory: export)


def split(labelled: LabelledAnswers, calibration: str) -> HeldOut:
    """The answers given under one calibration, in three by their digests: the same answers always fall alike.

    Raises CalibrationError where there are too few.
    """
    counted = labelled.calibrations == calibration
    if (n := int(counted.sum())) < LEAST:
        raise CalibrationError(
            f"of random answers in distribution under {calibration} {n} have a label; {LEAST} are needed at least"
        )
    logits, labels, times = (array[counted] for array in (labelled.logits, labelled.labels, labelled.answered))
    digests = [
        hashlib.sha256(row.tobytes() + time.tobytes()).hexdigest() for row, time in zip(logits, times, strict=True)
    ]
    order = np.argsort(digests)
    cuts = np.cumsum([int(n * share) for share in SHARES])

    def part(chosen: npt.NDArray[np.intp]) -> Split:
        content = "".join(sorted(digests[i] for i in chosen))
        return Split(logits[chosen], labels[chosen], hashlib.sha256(content.encode()).hexdigest())

    return HeldOut(*map(part, np.split(order, cuts)))


def _tell(part: Split, served: Calibration, fitted: Fitted) -> None:
    wide = np.asarray(part.logits, np.float64)
    before = probabilities(served.method, wide, served.params)
    for name, p in (
        (f"as served, by {served.method}", before),
        (f"anew, by {fitted.selection.chosen}", fitted.calibrated(wide)),
    ):
        error = expected_calibration_error(p.max(1), p.argmax(1) == part.labels)
        print(f"ECE on {len(part.labels):,} labels kept apart, {name}: {error:.2%}")


def _record(labelled: LabelledAnswers, served: Calibration) -> dict[str, Any]:
    """For the manifest's record of the training."""
    counted = labelled.answered[labelled.calibrations == served.id]
    return {"from": served.id, "labels": len(counted), "answered": [float(counted.min()), float(counted.max())]}
