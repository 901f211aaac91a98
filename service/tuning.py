"""Which batch size a model should be served at: measured on the machine that serves it, and remembered.

`python -m service.tuning` measures every served bundle with every backend that is installed, prints what it found and
writes it beside the bundles, as performance.json. A service that finds nothing there for its own machine measures at
its start and keeps the result in its cache.

performance.json depends on the machine, so the manifest does not vouch for it: it is checked when read, and ignored
where it makes no sense. It bears on speed only, never on an answer.
"""

import argparse
import fcntl
import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from service import bundle
from service.backends import Backend, Load, Placement, Plan, onnx, torchscript
from service.bundle import Bundle
from service.documents import Sha256
from service.errors import StartupError
from service.files import Folder, write_whole
from service.images import Pixels
from service.settings import Settings, available_cores

logger = logging.getLogger("trueodds")

PERFORMANCE = "performance.json"
# Of the best throughput: more images at once gain less than this and make everybody wait longer.
TOLERANCE = 0.02
# Between smaller batches some per cent are chance, and more images than these wait in any flood.
LEAST = 8
# What a batch costs around the backend: to the inference thread and back, and caches that each evicts for the other.
# Measured on a model of 0.93 ms an image (two cores of an EPYC, Zen 4): 1,650 requests/s in batches of 8, 1,765 in 16.
BATCH_S = 0.0005
# An image meets at most one running batch and then shares one, so the model adds no more than twice this to its
# latency: 100 ms, the time within which an answer seems immediate (Miller 1968; Nielsen 1993).
LONGEST_BATCH_S = 0.05
# Beyond, nothing was gained on any processor tried (docs/log.md), and activations take memory for good.
LARGEST_ON_CPU, LARGEST_ON_GPU = 32, 256
# All cores together must be this much faster than one worker's share, or they are better left to others.
WIDE_GAIN = 1.25
# Winograd's convolutions must be this much faster somewhere, or they are not worth their memory.
WINOGRAD_GAIN = 1.1
# Within a few per cent of the best on every processor tried (docs/log.md).
SAFE = 16
BUDGET_S = 0.4
# Short batches are repeated for so long: else they would have more chances of an undisturbed moment than long ones.
SAMPLE_S = 0.01
# But whether a lone image gets all cores hangs on them being free at the same moment, which is the more likely the
# shorter it is: somebody waits for this service to start, and asks whether it has.
LONE_SAMPLES, LONE_SAMPLE_S = 12, 0.003
# When there is time to wait for a quiet machine.
ATTEMPTS = 5

Positive = Annotated[float, Field(gt=0)]
Size = Annotated[int, Field(gt=0, le=LARGEST_ON_GPU)]


class Measured(BaseModel):
    """One backend on one machine: microseconds a batch by batch size, and what follows from them.

    `wide_microseconds` is the same with all cores, `winograd_microseconds` with Winograd's convolutions; `wide_from`
    and `winograd_from` are the smallest batches that are better run so, or null.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    placement: Placement
    microseconds: Annotated[dict[Size, Positive], Field(min_length=1)]
    wide_microseconds: dict[Size, Positive] = {}
    winograd_microseconds: dict[Size, Positive] = {}
    max_batch_size: Size
    wide_from: Size | None = None
    winograd_from: Size | None = None

    @model_validator(mode="after")
    def _chosen_among_the_measured(self) -> "Measured":
        if self.max_batch_size not in self.microseconds:
            raise ValueError("max_batch_size was not measured")
        if self.wide_from is not None and self.wide_from not in self.wide_microseconds:
            raise ValueError("wide_from was not measured")
        if self.winograd_from is not None and not self.winograd_microseconds:
            raise ValueError("winograd_from was not measured")
        return self

    @property
    def plan(self) -> Plan:
        return Plan(self.wide_from, self.winograd_from)


class Performance(BaseModel):
    """performance.json: what was measured of one model, a machine an entry."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    schema_version: Literal[1] = 1
    model_sha256: Sha256
    entries: list[Measured] = []

    def of(self, placement: Placement) -> Measured | None:
        return next((entry for entry in self.entries if entry.placement == placement), None)

    def updated(self, entry: Measured) -> "Performance":
        others = [other for other in self.entries if other.placement != entry.placement]
        return self.model_copy(update={"entries": [*others, entry]})


@dataclass(frozen=True)
class Shape:
    """The height and width a model takes."""

    height: int
    width: int


def wide_threads(settings: Settings) -> int:
    """Threads for a batch that is alone: all cores, unless somebody has said how many an inference may have."""
    return 0 if settings.threads else available_cores()


def loaded(load: Load, found: Bundle, settings: Settings, cache: Path | None = None) -> Backend:
    """A bundle, ready to run as the settings say; `cache` keeps what is compiled. Raises what `load` raises."""
    return load(
        found.directory,
        settings.device,
        settings.thread_count,
        wide_threads=wide_threads(settings),
        # Winograd's are the convolutions of float32: MNN would compute a variant as something else.
        winograd=settings.winograd and found.manifest.variant is None,
        cache=cache,
        seal=found.seal,
    )


def tuned(found: Bundle, backend: Backend, cache: Path | None = None) -> Measured:
    """What is known of this model on this backend: from beside the bundle or from the cache, else measured now.

    Sets the backend's plan. One process measures at a time, and those that waited for it measure nothing.
    """
    entry = _known(found, backend.placement, cache)
    if entry is None:
        with _one_at_a_time(cache):
            entry = _known(found, backend.placement, cache) or _measured(found, backend, cache)
    backend.plan = entry.plan
    return entry


def measure(backend: Backend, found: Bundle, budget_s: float = BUDGET_S) -> tuple[Measured, bool]:
    """Sweep the batch sizes for about `budget_s` seconds; and whether the machine was quiet meanwhile.

    Where it was not, the shares of the cores that were free say nothing of what all of them would give.
    """
    spec = found.manifest.input
    bystanders = Bystanders()
    swept = sweep(backend, Shape(spec.height, spec.width), budget_s)
    quiet = bystanders.leave_cores(max(backend.placement.threads, backend.placement.wide_threads))
    # This compares two ways on the same cores, turn by turn, so it holds for a busy machine too.
    winograd_from = choose_winograd(swept.narrow, swept.winograd)
    if quiet:
        winograd_from = sparing_lone_images(winograd_from, swept.wide, swept.winograd)
    # By a worker's share alone: under load, when batches are full, nobody has all cores.
    served = swept.served(winograd_from)
    limit = choose_limit(served) if quiet else safe_limit(served)
    wide = {size: taken for size, taken in swept.wide.items() if size <= limit and size < (winograd_from or math.inf)}
    entry = Measured(
        placement=backend.placement,
        microseconds=_microseconds(swept.narrow),
        wide_microseconds=_microseconds(swept.wide),
        winograd_microseconds=_microseconds(swept.winograd),
        max_batch_size=limit,
        wide_from=choose_wide(swept.narrow, wide) if quiet else None,
        winograd_from=winograd_from,
    )
    return entry, quiet


class Bystanders:
    """What other processes take of the cores, from when this is made."""

    def __init__(self, stat: Path = Path("/proc/stat")) -> None:
        self._stat = stat
        self._since = self._now()

    def leave_cores(self, wanted: int) -> bool:
        """Whether nine tenths of so many cores were idle or ours. Where the system does not say, so it is taken."""
        wall, own, idle = (now - then for now, then in zip(self._now(), self._since, strict=True))
        return math.isnan(idle) or own + idle >= 0.9 * wanted * wall

    def _now(self) -> tuple[float, float, float]:
        try:
            # proc(5): user, nice, system, idle, iowait, …, over all cores.
            _, _, _, _, idle, iowait, *_ = self._stat.read_text().split("\n", 1)[0].split()
            seconds = (int(idle) + int(iowait)) / os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError):
            seconds = float("nan")
        return time.perf_counter(), time.process_time(), seconds


@dataclass(frozen=True)
class Sweep:
    """Seconds a batch by batch size: on a worker's share of the cores, on all of them, and there by Winograd's way.

    A way that the backend has not is empty.
    """

    narrow: dict[int, float] = field(default_factory=dict)
    wide: dict[int, float] = field(default_factory=dict)
    winograd: dict[int, float] = field(default_factory=dict)

    def served(self, winograd_from: int | None) -> dict[int, float]:
        """What a batch takes on a worker's share of the cores, in whichever way it is run."""
        if winograd_from is None:
            return self.narrow
        return {size: self.winograd[size] if size >= winograd_from else taken for size, taken in self.narrow.items()}


def sweep(backend: Backend, shape: Shape, budget_s: float) -> Sweep:
    """Every batch size in every way the backend has.

    The least of several rounds, for whatever else the machine does only ever adds. No batch is tried that would take
    longer than LONGEST_BATCH_S.
    """
    deadline = time.perf_counter() + budget_s
    sizes = _sizes(backend)
    swept = Sweep()
    ways = [(Plan(), False, swept.narrow)]
    if backend.placement.wide_threads:
        ways.append((Plan(wide_from=1), True, swept.wide))
    if backend.placement.winograd:
        ways.append((Plan(winograd_from=1), False, swept.winograd))
    plan = backend.plan
    try:
        if backend.device == "tensorrt":
            # It builds an engine for the sizes it has seen; so it builds two, not one a size.
            backend.forward(np.zeros((sizes[-1], shape.height, shape.width, 3), np.uint8))
        while True:
            for size in sizes:
                batch = np.zeros((size, shape.height, shape.width, 3), np.uint8)
                first = size not in swept.narrow
                if first and _too_long(swept.narrow, size):
                    break
                samples, sample_s = (LONE_SAMPLES, LONE_SAMPLE_S) if size == 1 else (1, SAMPLE_S)
                for backend.plan, alone, best in ways * samples:
                    if first:
                        # The first run of a shape allocates, and may compile.
                        backend.forward(batch, alone=alone)
                    seconds = _timed(backend, batch, alone, sample_s)
                    best[size] = min(seconds, best.get(size, seconds))
            if time.perf_counter() > deadline:
                return swept
    finally:
        backend.plan = plan


def choose_limit(seconds: dict[int, float]) -> int:
    """The smallest batch within TOLERANCE of the best throughput, among those that take no longer than is good.

    But LEAST, or as near to it as these allow.
    """
    bounded = {size: taken for size, taken in seconds.items() if taken <= LONGEST_BATCH_S} or {
        min(seconds): seconds[min(seconds)]
    }
    rates = {size: size / (taken + BATCH_S) for size, taken in bounded.items()}
    best = max(rates.values())
    smallest = min(size for size, rate in rates.items() if rate >= best * (1 - TOLERANCE))
    return max(smallest, *(size for size in rates if size <= max(LEAST, min(rates))))


def safe_limit(seconds: dict[int, float]) -> int:
    """For a measurement not to be relied on: a batch too large costs little, one too small throughput."""
    return max((size for size, taken in seconds.items() if taken <= LONGEST_BATCH_S and size <= SAFE), default=1)


def choose_wide(narrow: dict[int, float], wide: dict[int, float]) -> int | None:
    """The smallest batch from which on all cores are WIDE_GAIN times as fast as one worker's share; None for none.

    On the average over the batches from there on, for one of them may have been disturbed, and not slower at that one.
    """
    gains = {size: narrow[size] / wide[size] for size in sorted(wide)}
    for size, gain in gains.items():
        from_here = [gains[other] for other in gains if other >= size]
        if gain > 1 and math.prod(from_here) >= WIDE_GAIN ** len(from_here):
            return size
    return None


def choose_winograd(narrow: dict[int, float], winograd: dict[int, float]) -> int | None:
    """The smallest batch from which on Winograd's convolutions are faster, between the sizes measured too; or None."""
    sizes = sorted(winograd)
    if not sizes or max(narrow[size] / winograd[size] for size in sizes) < WINOGRAD_GAIN:
        return None
    images = np.arange(1, sizes[-1] + 1)
    times = (np.interp(images, sizes, [way[size] for size in sizes]) for way in (narrow, winograd))
    slower = np.flatnonzero(np.less_equal(*times))
    found = int(images[slower[-1]]) + 1 if len(slower) else 1
    return found if found <= sizes[-1] else None


def sparing_lone_images(found: int | None, wide: dict[int, float], winograd: dict[int, float]) -> int | None:
    """Where Winograd's convolutions begin: not at one image, whose sender waits, if all cores are much faster."""
    if found == 1 and 1 in wide and winograd[1] >= WIDE_GAIN * wide[1]:
        return 2 if max(winograd) > 1 else None
    return found


def read(path: Path, model_sha256: str) -> Performance:
    """What a file says of this model; nothing where there is none, or, with a warning, where it makes no sense."""
    nothing = Performance(model_sha256=model_sha256)
    try:
        with Folder(path.parent) as folder:
            performance = Performance.model_validate_json(folder.read(path.name))
    except FileNotFoundError:
        return nothing
    except (OSError, ValidationError) as error:
        logger.warning("%s is ignored: %s", path, error)
        return nothing
    # Of a network exported before.
    return performance if performance.model_sha256 == model_sha256 else nothing


def write(path: Path, performance: Performance) -> None:
    """Whole or not at all. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_whole(path, performance.model_dump_json(indent=1).encode() + b"\n", 0o644)


def tune(found: Bundle, backends: Sequence[Backend], budget_s: float = BUDGET_S) -> list[Measured]:
    """Measure, and write beside the bundle what was measured undisturbed. Raises OSError."""
    path = found.directory / PERFORMANCE
    performance = read(path, found.sha256)
    entries = []
    for backend in backends:
        entry, quiet = _patiently_measured(backend, found, budget_s)
        entries.append(entry)
        if quiet:
            performance = performance.updated(entry)
        else:
            logger.warning("%s: not kept, for others used the cores; try again", found.manifest.name)
    if performance.entries:
        write(path, performance)
    return entries


def _patiently_measured(backend: Backend, found: Bundle, budget_s: float) -> tuple[Measured, bool]:
    for _ in range(ATTEMPTS - 1):
        entry, quiet = measure(backend, found, budget_s)
        if quiet:
            return entry, quiet
    return measure(backend, found, budget_s)


def _known(found: Bundle, placement: Placement, cache: Path | None) -> Measured | None:
    places = [found.directory / PERFORMANCE, *([_in_cache(cache, found)] if cache else [])]
    return next(filter(None, (read(place, found.sha256).of(placement) for place in places)), None)


def _measured(found: Bundle, backend: Backend, cache: Path | None) -> Measured:
    entry, quiet = measure(backend, found)
    logger.info("%s: batches of up to %d images, measured", found.manifest.name, entry.max_batch_size)
    if cache and quiet:
        path = _in_cache(cache, found)
        try:
            write(path, read(path, found.sha256).updated(entry))
        except OSError as error:
            logger.warning("what was measured is not kept: %s", error)
    return entry


def _in_cache(cache: Path, found: Bundle) -> Path:
    return cache / "performance" / f"{found.sha256}.json"


@contextmanager
def _one_at_a_time(cache: Path | None) -> Iterator[None]:
    """Two workers that measured together would measure each other. Without a cache nobody knows of the others."""
    lock = _lock(cache) if cache else None
    try:
        yield
    finally:
        if lock:
            lock.close()


def _lock(cache: Path) -> IO[str] | None:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        file = (cache / ".measuring").open("w")
    except OSError:
        return None
    # Given back when the file is closed, or with the process.
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def _sizes(backend: Backend) -> list[int]:
    largest = LARGEST_ON_CPU if backend.device == "cpu" else LARGEST_ON_GPU
    return [1 << power for power in range(largest.bit_length())]


def _too_long(best: dict[int, float], size: int) -> bool:
    # Twice the images take hardly less than twice the time where the bound is near.
    return size // 2 in best and 1.8 * best[size // 2] > LONGEST_BATCH_S


def _timed(backend: Backend, batch: Pixels, alone: bool, sample_s: float) -> float:
    runs, started = 0, time.perf_counter()
    while True:
        backend.forward(batch, alone=alone)
        runs += 1
        elapsed = time.perf_counter() - started
        if elapsed >= sample_s:
            return elapsed / runs


def _microseconds(seconds: dict[int, float]) -> dict[int, float]:
    return {size: round(taken * 1e6, 1) for size, taken in seconds.items()}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m service.tuning", description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each model and backend (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="print only, write nothing")
    arguments = parser.parse_args(argv)
    try:
        settings = Settings.from_environment()
        bundles = bundle.discover(settings.bundles, settings.models, settings.trust, settings.variant)
        for name, found in bundles.items():
            backends = list(_installed(found, settings))
            if arguments.dry_run:
                entries = [measure(backend, found, arguments.seconds)[0] for backend in backends]
            else:
                entries = tune(found, backends, arguments.seconds)
            print(f"\n{name}\n{table(entries)}")
    except (StartupError, OSError) as error:
        print(f"tuning: {error}", file=sys.stderr)
        return 1
    return 0


def table(entries: Sequence[Measured]) -> str:
    """Images a second by backend, way and batch size; "limit" is the batch size chosen, "from" where a way begins."""
    sizes = sorted({size for entry in entries for size in (*entry.microseconds, *entry.wide_microseconds)})
    head = ["images/s", "threads", *(f"batch {size}" for size in sizes), "limit", "from"]
    rows = [head]
    for entry in entries:
        placement = entry.placement
        what = f"{placement.backend} {placement.device}"
        rows.append([what, str(placement.threads), *_rates(entry.microseconds, sizes), str(entry.max_batch_size), ""])
        for way, threads, microseconds, start in (
            ("all cores", placement.wide_threads, entry.wide_microseconds, entry.wide_from),
            ("Winograd", placement.threads, entry.winograd_microseconds, entry.winograd_from),
        ):
            if microseconds:
                rows.append([way, str(threads), *_rates(microseconds, sizes), "", str(start or "never")])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _rates(microseconds: dict[int, float], sizes: Sequence[int]) -> list[str]:
    return [f"{size / microseconds[size] * 1e6:,.0f}" if size in microseconds else "" for size in sizes]


def _installed(found: Bundle, settings: Settings) -> Iterator[Backend]:
    """Every backend of this machine, as the service would run it."""
    for load in (onnx.load, torchscript.load):
        try:
            yield loaded(load, found, settings)
        except StartupError as error:
            print(f"not measured: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
