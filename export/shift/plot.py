"""The figures as a picture: accuracy, calibration error and flagged share over severity, a line for each kind."""

from io import BytesIO
from typing import TYPE_CHECKING, Any

from export.shift.figures import Report, mean
from models.corruptions import CORRUPTIONS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = {"accuracy": "accuracy", "ece_15": "expected calibration error", "flagged": "flagged as out of distribution"}


def svg(report: Report) -> bytes:
    """The same bytes for the same figures and the same matplotlib."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    file = BytesIO()
    # With a salt of its own, matplotlib names the parts of a file differently each time.
    with mpl.rc_context({"svg.hashsalt": "shift", "svg.fonttype": "none"}):
        figure = Figure(figsize=(11, 3.8), layout="constrained")
        panels = figure.subplots(1, len(PANELS))
        for panel, (name, title) in zip(panels, PANELS.items(), strict=True):
            _draw(panel, report, name, title)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def _draw(panel: "Axes", report: Report, name: str, title: str) -> None:
    for kind, corruptions in kinds(report).items():
        _line(panel, report, name, corruptions, kind)
    _line(panel, report, name, list(report.corruptions), "mean", color="black", linewidth=2)
    panel.set(title=title, xlabel="severity (0: as published)", ylim=(0, 1))
    panel.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    panel.grid(alpha=0.3)


def kinds(report: Report) -> dict[str, list[str]]:
    """The names of the corruptions by their kind."""
    found: dict[str, list[str]] = {}
    for name in report.corruptions:
        found.setdefault(CORRUPTIONS[report.dataset][name].kind, []).append(name)
    return found


def _line(panel: "Axes", report: Report, name: str, corruptions: list[str], label: str, **style: Any) -> None:
    values = [mean(report.at(severity, corruptions), name) for severity in (0, *report.severities)]
    drawn = [(severity, value) for severity, value in enumerate(values) if value is not None]
    panel.plot(*zip(*drawn, strict=True), marker="o", markersize=3, label=label, **style)
