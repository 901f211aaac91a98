"""Where a request's microseconds go: `python -m loadtest.profile --model digits`.

The stages of a request are timed in this process, over the test images. Once for a request alone, by the clock, when
inference may take all cores; and once for as many at a time as a batch may hold, in CPU time on a worker's share of the
cores, for there the event loop and the inference thread may overlap. The best of five repetitions counts, which other
processes disturb least. What the stages leave of the whole is routing, headers, the event loop, and what its thread and
the inference thread cost each other. With --cpu the whole is also run under Python's profiler.
"""

import argparse
import asyncio
import cProfile
import itertools
import os
import pstats
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import uvloop

from loadtest import contenders, processes, wrk
from loadtest.bodies import images_of, single
from loadtest.plan import positive
from service.errors import StartupError

if TYPE_CHECKING:
    from loadtest.pipeline import Pipeline

REPETITIONS = 5
FLOOR_CONNECTIONS, FLOOR_S = 16, 2
SHOWN_FUNCTIONS = 30
SERVER = "HTTP server and kernel"

T = TypeVar("T")
Clock = Callable[[], float]


@dataclass(frozen=True)
class Stage:
    """A part of a request and what it takes, in µs, alone and in company."""

    name: str
    alone_us: float | None
    company_us: float | None


def main(argv: Sequence[str] | None = None) -> int:
    options = _options(argv)
    with tempfile.TemporaryDirectory(prefix="trueodds-profile-") as name:
        # As in the service, whose workers share their metrics in files; read as prometheus_client is imported.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = name
        folder = Path(name)
        from loadtest.pipeline import Pipeline

        try:
            if not images_of(options.model):
                raise contenders.ContenderFailed(f"there are no test images of a model {options.model!r}")
            pipeline = Pipeline.of(options.model, folder)
        except (StartupError, contenders.ContenderFailed) as reason:
            print(f"profile: {reason}", file=sys.stderr)
            return 2
        files = list(itertools.islice(itertools.cycle(i.content for i in images_of(options.model)), options.requests))
        stages = measured(pipeline, files, folder)
        size = pipeline.max_batch_size
        print(f"{options.model}: µs a request, {len(files):,} requests\n\n{table(stages, size)}")
        if options.cpu:
            show_functions(options.model, files, size, folder)
    return 0


def measured(pipeline: "Pipeline", files: list[bytes], folder: Path) -> list[Stage]:
    """Each stage, the rest, and what the HTTP server takes where wrk is there to find out."""
    model, size = pipeline.model.name, pipeline.max_batch_size
    alone = in_process(pipeline, files, 1, time.perf_counter)
    company = in_process(pipeline, files, size, time.process_time)
    whole = [
        of_front(model, files, at_once, clock, folder)
        for at_once, clock in ((1, time.perf_counter), (size, time.process_time))
    ]
    server = of_server(model, len(pipeline.classify(files[:1])[0]), folder)
    return [
        Stage(SERVER, server, server),
        *(Stage(name, us, company[name]) for name, us in alone.items()),
        Stage("the rest", whole[0] - sum(alone.values()), whole[1] - sum(company.values())),
    ]


class Stopwatch:
    """Adds up, by name, what has passed on a clock from lap to lap."""

    def __init__(self, clock: Clock) -> None:
        self.took: dict[str, float] = defaultdict(float)
        self._clock = clock
        self._last = clock()

    def lap(self, name: str) -> None:
        now = self._clock()
        self.took[name] += now - self._last
        self._last = now


def in_process(pipeline: "Pipeline", files: list[bytes], size: int, clock: Clock) -> dict[str, float]:
    """µs an image for each stage, in batches of this size; stage after stage, so that caches are as in a request."""
    from loadtest.pipeline import counters

    count, count_batch = counters(pipeline.model.name)
    found: list[dict[str, float]] = []
    for _ in range(REPETITIONS):
        watch = Stopwatch(clock)
        for i in range(0, len(files), size):
            batch = files[i : i + size]
            _stages(pipeline, batch, size == 1, watch.lap)
            count_batch(len(batch))
            for _ in batch:
                count()
            watch.lap("metrics")
        found.append(watch.took)
    best = {name: 1e6 * min(took[name] for took in found) / len(files) for name in found[0]}
    return best | {"batch hop": of_hop(pipeline, files, size, clock)}


def _stages(pipeline: "Pipeline", files: list[bytes], alone: bool, lap: Callable[[str], None]) -> None:
    pixels = []
    for file in files:
        header = pipeline.header(file)
        lap("read header")
        picture = pipeline.decoded(header)
        lap("decode")
        pixels.append(pipeline.pixels(picture))
        lap("to pixels")
    batch = np.stack(pixels)
    lap("to pixels")
    outputs = pipeline.infer(batch, alone)
    lap("inference")
    rows = pipeline.rows(outputs)
    lap("rows")
    pipeline.encoded(rows)
    lap("encode")


def of_hop(pipeline: "Pipeline", files: list[bytes], size: int, clock: Clock) -> float:
    """µs an image from the queue into a batch and back, by the inference thread if it would go there; no inference."""
    from loadtest.pipeline import hop

    batch = pipeline.batch(files[:size])
    image, rows, on_loop = batch[:1], pipeline.rows(pipeline.infer(batch)), pipeline.runs_on_loop(batch)

    async def repeat() -> float:
        with hop(rows, on_loop) as submit:
            return await _us_at_once(lambda _: submit(image), files, size, clock)

    return _run(repeat())


def of_front(model: str, files: list[bytes], at_once: int, clock: Clock, folder: Path) -> float:
    """µs a request, whole but for the HTTP server."""
    from loadtest.pipeline import front

    async def repeat() -> float:
        with front(model, folder, alone=at_once == 1) as post:
            return await _us_at_once(post, files, at_once, clock)

    return _run(repeat())


def of_server(model: str, answer_bytes: int, folder: Path) -> float | None:
    """CPU µs a request of the HTTP floor in one process, the kernel's share included; None without wrk."""
    try:
        wrk.program()
    except wrk.WrkFailed as reason:
        print(f"profile: {SERVER} are not measured: {reason}", file=sys.stderr)
        return None
    with contenders.floor(1, folder) as floor:
        url, body = floor.url(answer_bytes), single(model, folder)
        with processes.Watch(floor.pids) as watch, wrk.Wrk(url, body, FLOOR_CONNECTIONS, FLOOR_S) as run:
            load = run.load()
    return 1e6 * watch.usage.cpu_s / load.requests


def show_functions(model: str, files: list[bytes], at_once: int, folder: Path) -> None:
    """Python's profile of the event loop's thread; the inference thread is not seen."""
    from loadtest.pipeline import front

    profiler = cProfile.Profile()

    async def repeat() -> None:
        with front(model, folder, alone=False) as post:
            profiler.enable()
            await _us_at_once(post, files, at_once, time.process_time)
            profiler.disable()

    _run(repeat())
    pstats.Stats(profiler).sort_stats("tottime").print_stats(SHOWN_FUNCTIONS)


def table(stages: Sequence[Stage], size: int) -> str:
    """Markdown; shares are of the sum."""
    sums = [sum(us or 0 for us in column) for column in zip(*((s.alone_us, s.company_us) for s in stages), strict=True)]
    rows = [*stages, Stage("sum", *sums)]
    lines = [f"| stage | alone, µs | share | {size} at once, CPU µs | share |", "| --- | --: | --: | --: | --: |"]
    for row in rows:
        cells = [
            cell
            for us, total in zip((row.alone_us, row.company_us), sums, strict=True)
            for cell in (("–", "–") if us is None else (f"{us:,.1f}", f"{100 * us / total:.0f} %"))
        ]
        lines.append("| " + " | ".join([row.name, *cells]) + " |")
    return "\n".join(lines)


async def _us_at_once(
    post: Callable[[bytes], Awaitable[object]], files: list[bytes], at_once: int, clock: Clock
) -> float:
    """A request's µs in the best of some repetitions, so many under way at once."""
    found = []
    for _ in range(REPETITIONS):
        started = clock()
        for i in range(0, len(files), at_once):
            await asyncio.gather(*(post(file) for file in files[i : i + at_once]))
        found.append((clock() - started) / len(files))
    return 1e6 * min(found)


def _run(repeat: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(repeat)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest.profile", description=__doc__)
    parser.add_argument("--model", default="digits", help="default: %(default)s")
    parser.add_argument("--requests", type=positive, default=2000, help="default: %(default)s")
    parser.add_argument("--cpu", action="store_true", help="run the whole under Python's profiler too")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
