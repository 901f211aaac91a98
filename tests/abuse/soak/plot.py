"""A run as a picture: memory, descriptors, latency and throughput over time."""

from pathlib import Path

from matplotlib.figure import Figure

from tests.abuse.soak.report import Run


def write(run: Run, path: Path) -> None:
    """As PNG; whole or not at all."""
    minutes = [each.seconds / 60 for each in run.samples]
    figure = Figure(figsize=(9, 9), layout="constrained")
    memory, held, latency, rate = figure.subplots(4, 1, sharex=True)
    memory.plot(minutes, [each.footprint.pss_mb for each in run.samples], label="PSS, all processes")
    memory.set_ylabel("memory, MB")
    held.plot(minutes, [each.footprint.descriptors for each in run.samples], label="descriptors")
    held.plot(minutes, [each.footprint.threads for each in run.samples], label="threads")
    latency.plot(minutes, [each.p99_ms for each in run.samples], label="p99")
    latency.plot(minutes, [each.p50_ms for each in run.samples], label="p50")
    latency.set_ylabel("lone image, ms")
    rate.plot(minutes, [each.rate for each in run.samples], label="requests a second")
    rate.set_xlabel("minutes")
    for panel in (memory, held, latency, rate):
        panel.set_ylim(bottom=0)
        panel.legend(loc="lower right")
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, format="png", dpi=100)
    partial.replace(path)
