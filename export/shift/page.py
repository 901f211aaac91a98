"""The figures as Markdown, in their place on the page: between the two markers of a model."""

from collections.abc import Iterable, Sequence

from export import markdown
from export.shift.figures import Figures, Report, mean

BEGIN, END = "<!-- {}: written by make shift -->", "<!-- {}: end -->"
ABSENT = "–"
NAMES = {
    "accuracy": "accuracy",
    "confidence": "mean confidence",
    "ece_15": "expected calibration error",
    "nll": "negative log-likelihood, nats",
    "flagged": "flagged",
    "accuracy_unflagged": "accuracy of those not flagged",
    "ece_15_unflagged": "calibration error of those not flagged",
}


def placed(page: str, model: str, text: str) -> str:
    """The page with the text between the model's markers. Raises PageError."""
    return markdown.placed(page, model, BEGIN.format(model), END.format(model), text)


def text(report: Report) -> str:
    """Everything about one model."""
    model = report.model
    picture = f"![accuracy, calibration error and flagged share of {model.name} by severity](shift/{model.name}.svg)"
    return "\n\n".join([_told(report), picture, _by_severity(report), _by_corruption(report), _elsewhere(report)])


def _told(report: Report) -> str:
    model = report.model
    part = "" if report.n == report.of else f" of {report.of:,}, evenly chosen"
    every = [found for severities in report.corruptions.values() for found in severities]
    return (
        f"`{model.name}` version {model.version} (`{model.sha256[:12]}`), {report.n:,} test images{part}, seed "
        f"{report.seed}, ONNX Runtime {report.versions['onnxruntime']}. Mean over all corruptions and severities: "
        f"accuracy {_percent(mean(every, 'accuracy'))}, expected calibration error {_percent(mean(every, 'ece_15'))}, "
        f"flagged {_percent(mean(every, 'flagged'))}."
    )


def _by_severity(report: Report) -> str:
    columns = {
        "test set": [report.clean],
        **{f"severity {severity}": report.at(severity) for severity in report.severities},
        **{f"{name} ({found.n:,} images)": [found] for name, found in report.shifted.items()},
    }
    rows = [[title, *(_shown(mean(found, name), name) for found in columns.values())] for name, title in NAMES.items()]
    return _table(["mean over corruptions", *columns], rows)


def _by_corruption(report: Report) -> str:
    """In each cell accuracy, calibration error and flagged share, in percent."""
    rows = [
        [name, *(_triple(found) for found in severities), *[ABSENT] * (len(report.severities) - len(severities))]
        for name, severities in report.corruptions.items()
    ]
    head = ["accuracy · calibration error · flagged, %", *map(str, report.severities)]
    return _table(head, [["none", _triple(report.clean), *[""] * (len(report.severities) - 1)], *rows])


def _elsewhere(report: Report) -> str:
    rows = [
        [name, f"{found.n:,}", *map(_percent, (found.auroc, found.fpr_95, found.flagged))]
        for name, found in report.elsewhere.items()
    ]
    return _table([f"told from the test set by `{report.score}`", "images", "AUROC", "FPR95", "flagged"], rows)


def _triple(found: Figures) -> str:
    return " · ".join(f"{100 * share:.1f}" for share in (found.accuracy, found.ece_15, found.flagged))


def _shown(value: float | None, name: str) -> str:
    if name == "nll" and value is not None:
        return f"{value:.3f}"
    return _percent(value)


def _percent(share: float | None) -> str:
    return ABSENT if share is None else f"{100 * share:.1f} %"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
