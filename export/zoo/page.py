"""The comparison as Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from textwrap import fill

from export.markdown import ABSENT, table
from export.zoo.figures import BATCH_SIZES, Figures
from models.records import Run

MARKS = "¹²³⁴⁵⁶⁷⁸⁹"
HEAD = (
    "network",
    "source",
    "data",
    "parameters",
    "MACs",
    "accuracy",
    "NLL",
    "ECE (by chance)",
    "images/s at 1",
    "at 32",
    "minutes to train",
)


@dataclass(frozen=True)
class Entry:
    """A network: multiply-accumulates an image as it is served, the runs that trained it and what was measured of it.

    runs: that of the committed weights first; none before there are weights. figures: None before they are measured.
    """

    name: str
    source: str
    dataset: str
    parameters: int
    macs: int
    runs: tuple[Run, ...]
    figures: Figures | None


def text(entries: Sequence[Entry]) -> str:
    """The table, and below it what its figures are of."""
    hardware = list(dict.fromkeys(entry.runs[0].hardware for entry in entries if entry.runs))
    return "\n\n".join([table(HEAD, [_row(entry, hardware) for entry in entries]), _told(entries, hardware)])


def _row(entry: Entry, hardware: list[str]) -> list[str]:
    counts = [f"{entry.parameters:,}", _millions(entry.macs)]
    figures = [*_calibrated(entry.figures), *_speeds(entry.figures)]
    name = f"`{entry.name}`"
    return [name, entry.source, entry.dataset, *counts, _accuracy(entry.runs), *figures, _minutes(entry.runs, hardware)]


def _millions(macs: int) -> str:
    return f"{macs / 1e6:.3g} M"


def _accuracy(runs: Sequence[Run]) -> str:
    """Of one run, or the mean ± standard deviation of several."""
    shares = [100 * run.accuracy for run in runs]
    if len(shares) < 2:
        return f"{shares[0]:.2f} %" if shares else ABSENT
    return f"{mean(shares):.2f} ± {stdev(shares):.2f} % ({len(shares)} seeds)"


def _calibrated(figures: Figures | None) -> list[str]:
    if figures is None:
        return [ABSENT, ABSENT]
    found = figures.calibrated
    return [f"{found.nll:.4f}", f"{100 * found.ece_15:.2f} % ({100 * found.ece_15_null_p99:.2f} %)"]


def _speeds(figures: Figures | None) -> list[str]:
    if figures is None:
        return [ABSENT] * len(BATCH_SIZES)
    return [f"{figures.images_per_second[str(size)]:,}" for size in BATCH_SIZES]


def _minutes(runs: Sequence[Run], hardware: list[str]) -> str:
    """Of the run whose weights there are."""
    return f"{runs[0].minutes:g} {MARKS[hardware.index(runs[0].hardware)]}" if runs else ABSENT


def _told(entries: Sequence[Entry], hardware: list[str]) -> str:
    measured = [entry.figures for entry in entries if entry.figures]
    speeds = dict.fromkeys(f"{figures.runtime} on one core of {figures.hardware}" for figures in measured)
    trained = " ".join(f"{mark} {name}." for mark, name in zip(MARKS, hardware, strict=False))
    told = (
        "MACs: multiply-accumulates for one image as it is served, two FLOPs each; `make summary MODEL=lenet5` has "
        "those of each layer. Accuracy: on the test set, mean ± standard deviation over seeds. NLL and ECE (15 bins): "
        "of the calibrated probabilities of the first run; in brackets what the ECE of a perfectly calibrated network "
        "exceeds in one of a hundred such test sets. Images/s: from pixels to answer, by the core's own time; "
        f"{'; '.join(speeds)}. Minutes: of the first run, by the clock. {trained}"
    )
    return fill(told, 120, break_long_words=False, break_on_hyphens=False)
