"""The figures as a picture: throughput and p99 over the number of connections, a column for each model."""

from pathlib import Path
from typing import TYPE_CHECKING

from loadtest.figures import Figures, Row, Spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"service": "C0", "limit": "C1", "floor": "0.6"}
NAMES = {"service": "service", "limit": "in-process limit", "floor": "HTTP floor"}


class PlotUnavailable(Exception):
    """There is nothing to draw with; says how to get it."""


def write(figures: Figures, path: Path) -> None:
    """As SVG or PNG, by the path's suffix; whole or not at all. Raises PlotUnavailable."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PlotUnavailable("no plot, for matplotlib is not installed: pip install matplotlib") from error
    rows = [figures.row(point) for point in figures.points("single")]
    models = list(dict.fromkeys(row.point.model for row in rows))
    figure = Figure(figsize=(4.5 * len(models), 6), layout="constrained")
    panels = figure.subplots(2, len(models), squeeze=False, sharex=True)
    for column, model in enumerate(models):
        _throughput(panels[0][column], model, [row for row in rows if row.point.model == model])
        _p99(panels[1][column], [row for row in rows if row.point.model == model])
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, format=path.suffix[1:])
    partial.replace(path)


def _throughput(panel: "Axes", model: str, rows: list[Row]) -> None:
    for contender, spreads in {
        "service": [row.rate for row in rows],
        "limit": [row.limit for row in rows],
        "floor": [row.floor for row in rows],
    }.items():
        _line(panel, contender, rows, spreads)
    panel.set(title=model, ylabel="requests a second")
    _axes(panel, rows)


def _p99(panel: "Axes", rows: list[Row]) -> None:
    _line(panel, "service", rows, [row.latencies_ms.get("p99") for row in rows])
    _line(panel, "floor", rows, [row.floor_latencies_ms.get("p99") for row in rows])
    panel.set(xlabel="connections", ylabel="p99, ms")
    _axes(panel, rows)


def _line(panel: "Axes", contender: str, rows: list[Row], spreads: list[Spread | None]) -> None:
    """Medians, and what they lie between as a band."""
    drawn = [(row.point.connections, spread) for row, spread in zip(rows, spreads, strict=True) if spread]
    if not drawn:
        return
    connections = [number for number, _ in drawn]
    colour = COLOURS[contender]
    panel.plot(connections, [s.median for _, s in drawn], marker="o", color=colour, label=NAMES[contender])
    panel.fill_between(connections, [s.low for _, s in drawn], [s.high for _, s in drawn], color=colour, alpha=0.2)


def _axes(panel: "Axes", rows: list[Row]) -> None:
    connections = [row.point.connections for row in rows]
    panel.set_xscale("log", base=2)
    panel.set_xticks(connections, [str(number) for number in connections])
    panel.set_yscale("log")
    panel.grid(alpha=0.3)
    panel.legend()
