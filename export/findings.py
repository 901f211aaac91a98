"""What a model card says of what was measured, a section each, as Markdown; errors beside what chance alone gives."""

from export.markdown import ABSENT, fine, finest, mark, percent, share, table, yes
from export.pictures import at_threshold, outside
from export.subject import Subject
from export.terms import GATES, METHODS, METRICS
from service.documents import Bin, Calibration, ClassFigures, Figures, Gate

WORST = 5


def summary(subject: Subject) -> str:
    """What a reader in haste takes away."""
    found, bound = subject.calibration.metrics, subject.calibration.metrics.null.ece_15_p99
    before, after = percent(found.before.ece_15), percent(found.after.ece_15)
    verdict = "is not perfectly calibrated" if found.after.ece_15 > bound else "shows no sign of being otherwise"
    return f"""Of {found.after.n:,} test images it answers {found.after.accuracy:.2%} right. Its probabilities are
off by {after} on average (the expected calibration error), without calibration by {before}. By chance alone a perfectly
calibrated model would seem to be off by up to {percent(bound)} in 99 of 100 cases, so this one {verdict}."""


def metrics(subject: Subject) -> str:
    found = subject.calibration.metrics
    null = found.null.model_dump()
    head = ("", "uncalibrated", "calibrated", "by chance: mean", "95 of 100 ≤", "99 of 100 ≤", "within 99 of 100")
    rows = []
    for metric in METRICS:
        before, after = (getattr(side, metric.name) for side in (found.before, found.after))
        chance = [null.get(f"{metric.name}_{part}") for part in ("mean", "p95", "p99")]
        verdict = ABSENT if chance[2] is None else yes(after <= chance[2])
        written = [ABSENT if value is None else metric.written(value) for value in (before, after, *chance)]
        rows.append((metric.title, *written, verdict))
    meanings = "\n".join(f"- **{metric.title}**: {metric.meaning}" for metric in METRICS)
    return f"""## Metrics, on {found.after.n:,} test images

{table(head, rows)}

"By chance" is what a perfectly calibrated model with the same probabilities would score on so many images, by the luck
of the draw alone. A calibration error within it is no sign of being wrong, and one beyond it is. It belongs to the
calibrated column.

{meanings}"""


def targets(subject: Subject) -> str:
    found: Figures = subject.calibration.metrics.after
    target = subject.purpose.target(found.accuracy)
    if target is None:
        return "## Targets\n\nNone were set for models of this data set."
    rows = [
        ("accuracy", f"{found.accuracy:.2%}", f"≥ {target.accuracy:.2%}", yes(found.accuracy >= target.accuracy)),
        ("ECE", percent(found.ece_15), f"≤ {percent(target.ece_15)}", yes(found.ece_15 <= target.ece_15)),
        (
            "ECE, as it should be",
            percent(found.ece_15),
            f"≤ {percent(target.ece_15_stretch)}",
            yes(found.ece_15 <= target.ece_15_stretch),
        ),
        ("negative log-likelihood", fine(found.nll), f"≤ {fine(target.nll)}", yes(found.nll <= target.nll)),
        ("Brier score", fine(found.brier), f"≤ {fine(target.brier)}", yes(found.brier <= target.brier)),
    ]
    missed = [title for title, *_, reached in rows if reached != "yes"]
    verdict = f"Not reached: {'; '.join(missed)}." if missed else "All are reached."
    return f"## Targets\n\n{verdict}\n\n" + table(("", "measured", "target", "reached"), rows)


def reliability(subject: Subject) -> str:
    bins = subject.calibration.bins
    told = f"Uncalibrated, {_outside(bins.before)}; calibrated, {_outside(bins.after)}."
    return f"""## Reliability

![Reliability diagrams before and after calibration, with what chance alone would give.](reliability.svg)

A model is calibrated when, of the answers it gives with 90 %, 90 % are right: the points then lie on the dotted line.
Grey is where chance alone would put 99 of 100 points of a perfectly calibrated model. Below it the difference from the
dotted line in percentage points, on an axis that is logarithmic beyond 0.1, and the number of images in each bin.

{told}

![Histogram of confidence in {len(bins.after)} bins, before and after calibration.](confidence.svg)"""


def choice(subject: Subject) -> str:
    calibration, selection = subject.calibration, subject.calibration.selection
    numbers = [(f"`{name}`", _parameter(value)) for name, value in calibration.params.items()]
    rows = [
        (
            f"`{name}`",
            finest(selection.cv_nll[name]),
            finest(selection.cv_nll.get("map_temperature", selection.cv_nll[name]) - selection.cv_nll[name]),
            finest(selection.se[name]),
            mark(name == selection.chosen),
        )
        for name in selection.candidates
    ]
    head = ("candidate", "cross-validated negative log-likelihood", "gain", "standard error of the gain", "chosen")
    return f"""## How it was calibrated

`{calibration.method}`: {METHODS[calibration.method]}

{table(("parameter", "value"), numbers) if numbers else "It has no parameters."}

Chosen on the {calibration.data["fit"].n:,} images of `fit`, by {selection.folds}-fold cross-validation with
seed {selection.seed}: another candidate takes the place of `map_temperature` only where its gain exceeds one standard
error, and a method that does not improve on the bare network on images it was not fitted on is dropped for `identity`.

{table(head, rows)}

The bundle could be written because these gates are passed, the first two on the images of `conformal`:

{table(("gate", "value", "bound", "passed"), [_gate(gate) for gate in calibration.gates])}"""


def classes(subject: Subject) -> str:
    found = subject.calibration.classes
    beyond = sum(one.ece > one.ece_null_p99 for one in found)
    verb = "is" if beyond == 1 else "are"
    rows = [
        (
            one.label,
            f"{one.n:,}",
            f"{one.recall:.2%}",
            percent(one.ece),
            percent(one.ece_null_p99),
            yes(one.ece <= one.ece_null_p99),
        )
        for one in sorted(found, key=_badness, reverse=True)[:WORST]
    ]
    head = ("class", "images", "found", "calibration error", "by chance: 99 of 100 ≤", "within that")
    return f"""## Classes

The worst calibrated first, by how large the error of a class's own probability is beside what chance alone would give.
Of {len(found)} classes {beyond} {verb} beyond that; of perfectly calibrated ones, one in a hundred would be.

{table(head, rows)}

![Confusion matrix: how many images of each class got which answer.](confusion.svg)

{_confused(subject.calibration)}"""


def prediction_sets(subject: Subject) -> str:
    calibration = subject.calibration
    rows = [
        (share(level.coverage), f"{level.threshold:.4f}", f"{level.n:,}", mark(level is calibration.conformal[0]))
        for level in calibration.conformal
    ]
    return f"""## Prediction sets

Instead of one label a set of them, which holds the true one at least as often as its coverage says, averaged over
images and over draws of those it was fitted on; not for each class or kind of image by itself. A label is in the set if
its probability reaches the threshold, and the answer always is (split conformal prediction, LAC, Sadinle et al. 2019).

{table(("coverage", "threshold", "fitted on images", "served unasked"), rows)}"""


def abstention(subject: Subject) -> str:
    calibration, promise = subject.calibration, subject.calibration.abstention
    rows = [
        ("errors among the answers, at most", f"{promise.risk:.2%}"),
        ("with a certainty of", share(1 - promise.delta)),
        ("abstains below a confidence of", f"{promise.threshold:.4f}"),
        ("fitted on images", f"{promise.n:,}"),
        ("of those it answers", f"{promise.coverage:.2%}"),
        ("upper bound of the error rate reached there", f"{promise.risk_bound:.3%}"),
    ]
    answered = at_threshold(calibration)
    test = (
        f"On the test set, of the {answered.coverage:.2%} of images with a confidence of {answered.confidence:.4f} or "
        f"more {answered.risk:.3%} are answered wrong; of all together {1 - calibration.metrics.after.accuracy:.2%}."
        if answered
        else "No image of the test set is as sure as that: it abstains from all."
    )
    return f"""## Abstention

The model says when a person should look: where it is less sure than a threshold that keeps the errors among its answers
down (Geifman and El-Yaniv 2017), and where the image is strange to it.

{table(("", ""), rows)}

{test}

![Risk–coverage curve: errors among the answers, were only the surest images answered.](risk_coverage.svg)"""


def _parameter(value: float | list[float]) -> str:
    return f"{len(value)} numbers, see calibration.json" if isinstance(value, list) else f"{value:.4f}"


def _gate(gate: Gate) -> tuple[str, str, str, str]:
    of_errors = gate.name in ("ece_15", "classwise_ece_15")
    written = percent if of_errors else "{:,.0f}".format if gate.name == "argmax" else "{:+.3g}".format
    bound = ABSENT if gate.bound is None else f"≤ {written(gate.bound) if gate.bound else 0}"
    return GATES.get(gate.name, gate.name), written(gate.value), bound, yes(gate.passed)


def _outside(bins: list[Bin]) -> str:
    filled = [found for found in bins if found.n]
    return f"{sum(map(outside, filled))} of {len(filled)} bins with images lie outside of the grey"


def _badness(one: ClassFigures) -> float:
    return one.ece / one.ece_null_p99 if one.ece_null_p99 else float(one.ece > 0)


def _confused(calibration: Calibration) -> str:
    labels, matrix = calibration.labels, calibration.confusion
    errors = [(n, i, j) for i, row in enumerate(matrix) for j, n in enumerate(row) if i != j]
    total = sum(n for n, _, _ in errors)
    if not total:
        return "There are no errors."
    n, truth, answer = max(errors, key=lambda error: error[0])
    return f"Of {total:,} errors the most of one kind, {n:,}, take “{labels[truth]}” for “{labels[answer]}”."
