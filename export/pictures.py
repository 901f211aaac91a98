"""The evidence of calibration.json as SVG, the same bytes for the same figures: on white, readable without colours.

Marks have ids, such as `before-point-14`, so that a test or a script can find them.
"""

import io
import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from service.documents import Bin, Calibration, RiskPoint

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito 2008: colours that differ for every kind of colour vision.
BLUE, VERMILION, GREEN, GREY, PALE = "#0072b2", "#d55e00", "#009e73", "#666666", "#d9d9d9"
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "trueodds",
    # What it is laid out by is in matplotlib itself; what it is shown in is the reader's own.
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    # A label is a label, dollar signs and all.
    "text.parse_math": False,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "legend.frameon": False,
    "legend.fontsize": 8,
}
SIDES = {"before": "Uncalibrated", "after": "Calibrated"}
COLOURS = {"before": VERMILION, "after": BLUE}
# Percentage points up to which the axis of gaps is linear.
LINEAR_TO = 0.1
# The attributes that hold places, and numbers in them with more than two decimals.
PLACES, LONG = re.compile(rb' (?:d|x|y|x1|y1|x2|y2|width|height|transform)="[^"]*"'), re.compile(rb"-?\d+\.\d{3,}")
FONT = re.compile(rb" font-family: 'DejaVu Sans'(?:, sans-serif)?;?")
WRAPPED = re.compile(rb'<g id="text_\d+">\n(<text[^\n]*</text>)\n</g>')
INDENT, UPRIGHT = re.compile(rb"\n +"), re.compile(rb' transform="rotate\(-?0 [^"]*"')


def reliability(calibration: Calibration) -> bytes:
    """Before beside after: accuracy over confidence, the gap between them in points, and the images, each by bin."""

    def draw(figure: "Figure") -> None:
        grid = figure.add_gridspec(
            3, 2, height_ratios=(5, 3, 2), left=0.11, right=0.98, top=0.93, bottom=0.11, hspace=0.12, wspace=0.2
        )
        for column, (side, title) in enumerate(SIDES.items()):
            found = _filled(getattr(calibration.bins, side))
            top, middle, bottom = (figure.add_subplot(grid[row, column]) for row in range(3))
            top.set_title(title)
            _diagram(top, side, found)
            _gaps(middle, side, found)
            _counts(bottom, side, found)
            if not column:
                _name_rows(top, middle, bottom)
        figure.legend(handles=_bin_legend(), loc="lower center", ncols=4)

    return _svg(draw, 9, 7.6)


def risk_coverage(calibration: Calibration) -> bytes:
    """The error rate of the answers given, were only the surest images answered, and where the model abstains."""

    def draw(figure: "Figure") -> None:
        axes = figure.add_axes((0.1, 0.13, 0.87, 0.8))
        points, promise = calibration.risk_coverage, calibration.abstention
        coverages = [point.coverage for point in points]
        axes.plot(coverages, [100 * point.risk for point in points], color=BLUE, label="this model", gid="curve")
        errors = 1 - calibration.metrics.after.accuracy
        best = [100 * max(0.0, 1 - (1 - errors) / max(coverage, 1e-9)) for coverage in coverages]
        axes.plot(coverages, best, color=GREY, ls=":", label="best possible: every error last", gid="best")
        axes.axhline(100 * promise.risk, color=GREEN, ls="--", label=f"promise: {promise.risk:.2%}", gid="promise")
        if answered := at_threshold(calibration):
            _mark_threshold(axes, answered, promise.threshold)
        first = next((point.coverage for point in points if point.risk), 0.0)
        axes.set(xlabel="share of images answered", ylabel="errors among the answers, %")
        # Where the surest images hold no error there is nothing to see.
        axes.set(xlim=(max(0.0, math.floor(10 * first - 1) / 10), 1.005), ylim=(0, None))
        axes.legend(loc="upper left")

    return _svg(draw, 7, 4)


def confidence(calibration: Calibration) -> bytes:
    """How many images have which confidence, before and after, by bin; counts on a logarithmic axis."""
    from matplotlib.patches import Patch

    def draw(figure: "Figure") -> None:
        axes = figure.add_axes((0.09, 0.13, 0.895, 0.8))
        for side, shift in (("before", -0.25), ("after", 0.25)):
            for number, found in _filled(getattr(calibration.bins, side)):
                width = found.high - found.low
                middle = (found.low + found.high) / 2 + shift * width * 0.9
                axes.bar(middle, found.n, width * 0.45, color=COLOURS[side], gid=f"{side}-bar-{number}")
                axes.annotate(f"{found.n}", (middle, found.n), (0, 2), **_small("bottom"))
        _log_counts(axes, max(found.n for side in SIDES for found in getattr(calibration.bins, side)), 4)
        axes.set(xlabel="confidence: probability of the answer", ylabel="images (logarithmic)")
        lows = [found.low for side in SIDES for _, found in _filled(getattr(calibration.bins, side))]
        axes.set_xlim(min(lows, default=0.0) - 0.01, 1.005)
        axes.legend(
            handles=[Patch(color=COLOURS[side], label=title) for side, title in SIDES.items()], loc="upper left"
        )

    return _svg(draw, 9, 3.6)


def confusion(calibration: Calibration) -> bytes:
    """Which classes are taken for which. Errors are coloured by their number, right answers are left grey."""

    def draw(figure: "Figure") -> None:
        axes, labels = figure.add_axes((0.2, 0.02, 0.78, 0.8)), calibration.labels
        most = max((n for i, row in enumerate(calibration.confusion) for j, n in enumerate(row) if i != j), default=0)
        for i, row in enumerate(calibration.confusion):
            for j, n in enumerate(row):
                if n:
                    _cell(axes, i, j, n, most)
        ticks = range(len(labels))
        axes.set_xticks(ticks, labels, rotation=45, ha="left", rotation_mode="anchor")
        axes.set_yticks(ticks, labels)
        axes.xaxis.tick_top()
        axes.xaxis.set_label_position("top")
        axes.set(xlim=(-0.5, len(labels) - 0.5), ylim=(len(labels) - 0.5, -0.5), xlabel="answer", ylabel="truth")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)

    return _svg(draw, 6.4, 5.6)


PICTURES: dict[str, Callable[[Calibration], bytes]] = {
    "reliability.svg": reliability,
    "risk_coverage.svg": risk_coverage,
    "confidence.svg": confidence,
    "confusion.svg": confusion,
}


def at_threshold(calibration: Calibration) -> RiskPoint | None:
    """The last point of the published curve whose images are all at least as sure as the threshold of abstention."""
    sure = [point for point in calibration.risk_coverage if point.confidence >= calibration.abstention.threshold]
    return max(sure, key=lambda point: point.coverage, default=None)


def outside(found: Bin) -> bool:
    """Whether the accuracy of this bin is not within what chance alone would give in 99 of 100 cases."""
    if found.accuracy is None or found.null_low is None or found.null_high is None:
        return False
    return not found.null_low <= found.accuracy <= found.null_high


def _filled(bins: list[Bin]) -> list[tuple[int, Bin]]:
    return [(number, found) for number, found in enumerate(bins) if found.n]


def _diagram(axes: "Axes", side: str, bins: list[tuple[int, Bin]]) -> None:
    axes.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls=":")
    _draw_bins(axes, side, bins, 1.0, lambda found: 0.0)
    axes.set(xlim=(0, 1.01), ylim=(0, 1.03))
    axes.tick_params(labelbottom=False)


def _gaps(axes: "Axes", side: str, bins: list[tuple[int, Bin]]) -> None:
    axes.axhline(0, color=GREY, lw=0.8, ls=":")
    _draw_bins(axes, f"{side}-gap", bins, 100.0, lambda found: found.confidence or 0.0)
    axes.set_yscale("symlog", linthresh=LINEAR_TO, linscale=0.6)
    axes.set(xlim=(0, 1.01), ylim=(-120, 120))
    ticks = (-100, -10, -1, 0, 1, 10, 100)
    axes.set_yticks(ticks, [f"{tick:+d}" if tick else "0" for tick in ticks])
    axes.minorticks_off()
    axes.tick_params(labelbottom=False)


def _draw_bins(
    axes: "Axes", side: str, bins: list[tuple[int, Bin]], scale: float, origin: Callable[[Bin], float]
) -> None:
    """Of each bin the band of chance, a stem from its confidence to its accuracy, and its accuracy as a point."""
    for number, found in bins:
        low, high, accuracy, expected = (
            scale * ((value or 0.0) - origin(found))
            for value in (found.null_low, found.null_high, found.accuracy, found.confidence)
        )
        at, width, odd = found.confidence or 0.0, found.high - found.low, outside(found)
        middle = (found.low + found.high) / 2
        axes.bar(middle, high - low, width * 0.94, low, color=PALE, clip_on=False, gid=f"{side}-band-{number}")
        colour = VERMILION if odd else BLUE
        stem = axes.plot([at, at], [expected, accuracy], color=colour, lw=2, clip_on=False, solid_capstyle="butt")
        stem[0].set_gid(f"{side}-stem-{number}")
        marker, face = ("D", VERMILION) if odd else ("o", "white")
        point = axes.plot(at, accuracy, marker, ms=5.5, mec=colour, mfc=face, mew=1.4, zorder=3, clip_on=False)
        point[0].set_gid(f"{side}-point-{number}")


def _bin_legend() -> list["Artist"]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    return [
        Line2D([], [], color=GREY, lw=0.8, ls=":", label="accuracy = confidence"),
        Patch(color=PALE, label="by chance alone, in 99 of 100 cases"),
        Line2D([], [], ls="", marker="o", ms=5.5, mec=BLUE, mfc="white", mew=1.4, label="accuracy, within that"),
        Line2D([], [], ls="", marker="D", ms=5.5, color=VERMILION, label="accuracy, outside of that"),
    ]


def _counts(axes: "Axes", side: str, bins: list[tuple[int, Bin]]) -> None:
    for number, found in bins:
        width = found.high - found.low
        middle = (found.low + found.high) / 2
        axes.bar(middle, found.n, width * 0.94, color=GREY, gid=f"{side}-count-{number}")
        axes.annotate(f"{found.n}", (middle, found.n), (0, 2), **_small("bottom"))
    _log_counts(axes, max((found.n for _, found in bins), default=1), 20)
    axes.set_xlabel("confidence: probability of the answer")


def _name_rows(top: "Axes", middle: "Axes", bottom: "Axes") -> None:
    for axes, name in ((top, "accuracy"), (middle, "accuracy −\nconfidence, points"), (bottom, "images")):
        axes.set_ylabel(name)
        axes.yaxis.set_label_coords(-0.145, 0.5)


def _mark_threshold(axes: "Axes", answered: RiskPoint, threshold: float) -> None:
    at = (answered.coverage, 100 * answered.risk)
    axes.axvline(answered.coverage, color=VERMILION, lw=0.8)
    axes.plot(*at, "D", ms=6, color=VERMILION, label=f"abstains below {threshold:.4f}", gid="threshold")


def _log_counts(axes: "Axes", most: int, room: float) -> None:
    """An axis from below one image to `room` times the most, with ticks in words that need no superscripts."""
    axes.set_yscale("log")
    axes.set(xlim=(0, 1.01), ylim=(0.7, room * max(most, 1)))
    ticks = [10**power for power in range(len(str(most)))]
    axes.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()


def _cell(axes: "Axes", i: int, j: int, n: int, most: int) -> None:
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    # From a tenth on: one error must differ from none. The square root, for a few pairs of classes have most errors.
    depth = 0.0 if i == j else 0.1 + 0.85 * (n / most) ** 0.5
    colour = "#eeeeee" if i == j else colormaps["YlOrBr"](depth)
    axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=colour, edgecolor="white", gid=f"cell-{i}-{j}"))
    ink = GREY if i == j else "white" if depth > 0.8 else "black"
    axes.text(j, i, f"{n}", ha="center", va="center", color=ink, size=8, weight="normal" if i == j else "bold")


def _small(va: str) -> dict[str, Any]:
    return {"textcoords": "offset points", "ha": "center", "va": va, "size": 6, "color": "#333333"}


def _svg(draw: Callable[["Figure"], None], width: float, height: float) -> bytes:
    """A drawing so many inches wide and high, whatever is set on this machine."""
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with style.context(["default", STYLE], after_reset=True):
        figure = Figure(figsize=(width, height), facecolor="white")
        FigureCanvasAgg(figure)
        draw(figure)
        written = io.BytesIO()
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _lean(written.getvalue())


def _lean(svg: bytes) -> bytes:
    """With places to a hundredth of a point, without indents, and in the font of whoever looks at it."""
    short = PLACES.sub(lambda places: LONG.sub(lambda found: b"%.2f" % float(found[0]), places[0]), svg)
    plain = FONT.sub(b"", UPRIGHT.sub(b"", INDENT.sub(b"\n", short)))
    return WRAPPED.sub(rb"\1", plain).replace(b"</style>", b"text{font-family: sans-serif}</style>", 1)
