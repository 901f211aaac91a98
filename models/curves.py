"""Pictures of a training run, as PNG: its schedule, its losses, and what goes on in each layer."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.optim import Optimizer

from models.activations import HIGHEST, NEAR_ZERO, Activations, Layer
from models.files import replacing
from models.formats import DataError
from models.progress import Progress, Stepped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOTS_PER_INCH = 110
# Batches over which the curve of single losses is smoothed.
SMOOTHED = 20
# A layer name in a grid of small pictures.
SMALL = 8


def schedule_values(stepped: Stepped, steps: int) -> dict[str, tuple[list[float], list[float]]]:
    """Learning rate and momentum at each of so many steps, by group of parameters; steps the schedules to their end.

    For a network that is not to be trained any more, best one without gradients: its optimisers are stepped too.
    """
    groups = {
        f"{type(optimizer).__name__} {number}": group
        for optimizer, _ in stepped
        for number, group in enumerate(optimizer.param_groups)
    }
    values: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in groups}
    for step in range(steps):
        for name, group in groups.items():
            values[name][0].append(float(group["lr"]))
            values[name][1].append(_momentum(group))
        if step + 1 < steps:
            for optimizer, rate in stepped:
                _untouched(optimizer)
                rate.step()
    return values


def schedule(stepped: Stepped, steps: int, path: Path) -> None:
    """Learning rate and momentum by step."""
    values = schedule_values(stepped, steps)

    def draw(figure: "Figure") -> None:
        rates, momenta = figure.subplots(1, 2)
        for name, (rate, momentum) in values.items():
            rates.plot(rate, label=name)
            momenta.plot(momentum, label=name)
        rates.set(title="Learning rate", xlabel="step")
        momenta.set(title="Momentum", xlabel="step")
        rates.legend()

    _write(path, (9, 3.5), draw)


def losses(progress: Progress, path: Path) -> None:
    """The loss of each batch, smoothed; after each pass the mean, and NLL and accuracy on images held out."""
    passes = range(1, len(progress.history) + 1)
    per_pass = len(progress.losses) / max(1, len(progress.history))

    def draw(figure: "Figure") -> None:
        left, right = figure.subplots(1, 2)
        smoothed = _smoothed(progress.losses)
        left.plot(np.arange(len(smoothed)) / per_pass, smoothed, color="lightgrey", label="batches")
        left.plot(passes, [each["loss"] for each in progress.history], marker=".", label="training")
        left.plot(passes, [each["nll"] for each in progress.history], marker=".", label="held out")
        left.set(title="Loss, nats", xlabel="epoch", ylim=(0, None))
        left.legend()
        right.plot(passes, [100 * each["accuracy"] for each in progress.history], marker=".")
        right.set(title="Accuracy on held-out images, %", xlabel="epoch")

    _write(path, (9, 3.5), draw)


def statistics(activations: Activations, path: Path) -> None:
    """Mean, standard deviation and share near zero of each layer's activations, over the steps looked at."""
    kinds: dict[str, Callable[[Layer], list[float]]] = {
        "mean": lambda layer: layer.mean,
        "standard deviation": lambda layer: layer.deviation,
        f"share within {NEAR_ZERO} of zero": lambda layer: layer.near_zero,
    }

    def draw(figure: "Figure") -> None:
        grid = figure.subplots(len(activations.layers), len(kinds), squeeze=False, sharex=True)
        for row, (name, layer) in zip(grid, activations.layers.items(), strict=True):
            for axes, (title, values) in zip(row, kinds.items(), strict=True):
                axes.plot(values(layer))
                axes.set_title(f"{name}: {title}", fontsize=SMALL)
            row[-1].set_ylim(0, 1)

    _write(path, (11, 1.8 * len(activations.layers)), draw)


def histograms(activations: Activations, path: Path) -> None:
    """The colourful dimension: a column for each step looked at, its colours the logarithm of each bin's count."""

    def draw(figure: "Figure") -> None:
        grid = figure.subplots(len(activations.layers), 1, squeeze=False)
        for axes, (name, layer) in zip(grid[:, 0], activations.layers.items(), strict=True):
            _colourful(axes, layer)
            axes.set_title(name, fontsize=SMALL)

    _write(path, (9, 1.8 * len(activations.layers)), draw)


def _colourful(axes: "Axes", layer: Layer) -> None:
    counts = np.log1p(np.array(layer.histogram)).T
    axes.imshow(counts, origin="lower", aspect="auto", extent=(0, counts.shape[1], 0, HIGHEST), cmap="viridis")


def _momentum(group: dict[str, Any]) -> float:
    return float(group["momentum"] if "momentum" in group else group.get("betas", (0.0,))[0])


def _untouched(optimizer: Optimizer) -> None:
    # A schedule wants its optimiser to have been stepped before; without gradients that moves nothing.
    optimizer.zero_grad()
    optimizer.step()


def _smoothed(values: list[float]) -> list[float]:
    """The mean of each value and those up to SMOOTHED − 1 before it."""
    sums = np.cumsum([0.0, *values])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - SMOOTHED)
    return list((sums[ends] - sums[starts]) / (ends - starts))


def _write(path: Path, size: tuple[float, float], draw: Callable[["Figure"], None]) -> None:
    figure = figure_of(size)
    draw(figure)
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=DOTS_PER_INCH)
    print(f"wrote {path}")


def figure_of(size: tuple[float, float]) -> "Figure":
    """An empty figure, inches wide and high. Raises DataError where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DataError("--plot needs matplotlib: pip install matplotlib, or leave the option out") from error
    return Figure(figsize=size, layout="constrained")
