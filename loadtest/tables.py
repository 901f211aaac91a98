"""The figures as Markdown tables, ratios first. A median stands before what it lies between."""

from collections.abc import Callable, Sequence

from loadtest.figures import Figures, Point, Row, Spread

PARTS = {"form": "form of PNGs", "tensor": ".npy of pixels", "binary": ".npy, binary answer"}
ABSENT = "–"
SINGLE_HEAD = (
    "c",
    "of the limit",
    "of the floor",
    "requests/s",
    "limit/s",
    "floor/s",
    "p50 ms",
    "p99 ms",
    "p99.9 ms",
    "CPU ms/request",
    "limit's",
    "errors",
)
BULK_HEAD = (
    "body",
    "of the limit",
    "of a plain loop",
    "images/s",
    "limit/s",
    "loop/s",
    "p50 ms",
    "p99 ms",
    "CPU ms/image",
    "limit's",
    "errors",
)
CROWD_HEAD = ("both models at once", "of alone", "images/s", "p50 ms", "p99 ms", "errors")


def single(figures: Figures, model: str) -> str:
    """One image a request, a row for each number of connections."""
    rows = [figures.row(point) for point in figures.points("single") if point.model == model]
    return _table(
        SINGLE_HEAD,
        [
            (
                _marked(row, f"{row.point.connections:,}"),
                *map(_share, (row.of_limit, row.of_floor)),
                *map(_whole, (row.rate, row.limit, row.floor)),
                *(_short(row.latencies_ms.get(name)) for name in ("p50", "p99", "p999")),
                *map(_short, (row.cpu_ms, row.limit_cpu_ms)),
                str(row.errors),
            )
            for row in rows
        ],
    )


def bulk(figures: Figures, model: str) -> str:
    """Many images a request, a row for each kind of body."""
    rows = [figures.row(point) for point in figures.points(*PARTS) if point.model == model]
    return _table(
        BULK_HEAD,
        [
            (
                _marked(row, PARTS[row.point.part]),
                *map(_share, (row.of_limit, row.of_loop)),
                *map(_whole, (row.rate, row.limit, row.loop)),
                *(_short(row.latencies_ms.get(name)) for name in ("p50", "p99")),
                *map(_short, (row.cpu_ms, row.limit_cpu_ms)),
                str(row.errors),
            )
            for row in rows
        ],
    )


def crowd(figures: Figures, few: int, many: int) -> str:
    """Many connections against few, and both models at once against each alone."""
    lines = []
    for point in figures.points("crowd"):
        if point.connections == many:
            alone = Point("crowd", point.model, few)
            kept, row = figures.compared(point, alone), figures.row(point)
            lines.append(
                f"{_marked(row, point.model)}: {many:,} connections get {_share(kept)} of what {few} get; "
                f"p99 {_short(row.latencies_ms.get('p99'))} ms, errors {row.errors}"
            )
    together = [
        (figures.row(point), figures.compared(point, Point("crowd", point.model, few)))
        for point in figures.points("together")
    ]
    if together:
        total = sum(share.median for _, share in together if share)
        rows = [
            (
                _marked(row, row.point.model),
                _share(share),
                _whole(row.rate),
                *(_short(row.latencies_ms.get(name)) for name in ("p50", "p99")),
                str(row.errors),
            )
            for row, share in together
        ]
        lines += ["", _table(CROWD_HEAD, [*rows, ("sum", f"{total:.0%}".replace("%", " %"), "", "", "", "")])]
    return "\n".join(lines)


def text(spread: Spread | None, unit: str) -> str:
    """A figure of the whole run."""
    return f"{_short(spread)} {unit}" if spread else "not measured: somebody else started the service"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    rule = "| " + " | ".join("-" * width for width in widths) + " |"
    return "\n".join([line(head), rule, *map(line, rows)])


def _marked(row: Row, name: str) -> str:
    """With a ~ where every round was disturbed."""
    return f"~ {name}" if row.disturbed else name


def _share(spread: Spread | None) -> str:
    return _spread(spread, lambda value: f"{100 * value:.0f}", " %")


def _whole(spread: Spread | None) -> str:
    return _spread(spread, lambda value: f"{value:,.0f}")


def _short(spread: Spread | None) -> str:
    return _spread(spread, lambda value: f"{value:,.0f}" if value >= 100 else f"{value:.3g}")


def _spread(spread: Spread | None, shown: Callable[[float], str], unit: str = "") -> str:
    if spread is None:
        return ABSENT
    middle, low, high = map(shown, (spread.median, spread.low, spread.high))
    return middle + unit if low == high else f"{middle}{unit} ({low}–{high})"
