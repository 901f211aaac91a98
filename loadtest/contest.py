"""The contenders of a benchmark taking turns: at every point each is measured, another one first in each round."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from loadtest import bodies, processes, wrk
from loadtest.bodies import Body
from loadtest.contenders import Floor, Limit, Service
from loadtest.figures import Point, Sample
from loadtest.pipeline import pixels_of
from loadtest.plan import Plan
from loadtest.processes import Usage
from service.binary import MEDIA_TYPE

BATCHES = (1, 4, 8, 16, 32)
BATCH_SEARCH_S = 0.5
FEW, MANY = 64, 1024
# Requests of many images under way at once, for each worker.
BULK_CONNECTIONS = 2
# What the limit does beside a bulk part; beside any other it decodes files.
KINDS = {"tensor": "tensor", "binary": "binary"}
LATENCIES = ("p50", "p90", "p99", "p999", "max")


@dataclass
class Contest:
    """The contenders, running, and what has been measured of them so far."""

    plan: Plan
    service: Service
    floor: Floor
    limits: dict[str, Limit]
    folder: Path
    workers: int
    answer_bytes: dict[str, int] = field(default_factory=dict)
    batches: dict[str, int] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)

    def prepare(self) -> None:
        """Check an answer of each model, warm the service up, and find the limit's best batch size."""
        self.service_pids = self.service.pids
        self.single = {model: bodies.single(model, self.folder) for model in self.limits}
        self.bulk = {model: self._bulk_bodies(model) for model in self.limits if "bulk" in self.plan.parts}
        for model, limit in self.limits.items():
            self.answer_bytes[model] = self.service.check(model, self.single[model])
            with wrk.Wrk(self.service.classify_url(model), self.single[model], FEW, 1) as warming_up:
                warming_up.load()
            self.batches[model] = max(BATCHES, key=lambda batch: limit.rate("files", batch, BATCH_SEARCH_S))

    def measure(self, report: Callable[[str], None]) -> None:
        """Every point once in each round; at each the contenders take turns, another one first in each round."""
        for number in range(self.plan.rounds):
            for model in self.limits:
                if "single" in self.plan.parts:
                    for connections in self.plan.connections:
                        report(self._single(number, Point("single", model, connections)))
                for part, body in self.bulk.get(model, {}).items():
                    report(self._bulk(number, Point(part, model, BULK_CONNECTIONS * self.workers), body))
            if "crowd" in self.plan.parts:
                report(self._crowd(number))

    def _single(self, number: int, point: Point) -> str:
        return self._turns(
            number,
            point,
            [
                lambda: self._limit(number, point),
                lambda: self._floor(number, point),
                lambda: self._service(number, point, self.single[point.model]),
            ],
        )

    def _bulk(self, number: int, point: Point, body: Body) -> str:
        contending = [
            lambda: self._limit(number, point),
            lambda: self._service(number, point, body),
            lambda: self._plain_loop(number, point),
        ]
        return self._turns(number, point, contending)

    def _crowd(self, number: int) -> str:
        """Many connections against few, model by model; then all models at once over few connections each."""
        points = [Point("crowd", model, connections) for model in self.limits for connections in (FEW, MANY)]
        taken = [self._service(number, point, self.single[point.model]) for point in points]
        if len(self.limits) > 1:
            taken += self._together(number)
        self.samples += taken
        return self._progress(number, Point("crowd", "all models", MANY), taken)

    def _turns(self, number: int, point: Point, contending: Sequence[Callable[[], Sample]]) -> str:
        first = number % len(contending)
        taken = [measure() for measure in (*contending[first:], *contending[:first])]
        self.samples += taken
        return self._progress(number, point, taken)

    def _service(self, number: int, point: Point, body: Body) -> Sample:
        # What is left of a crowd that has gone is not this measurement's.
        processes.wait_until_still(self.service_pids)
        url = self.service.classify_url(point.model)
        # wrk leaves out what is under way in the end, which is much where a request is of many images.
        seconds = self.plan.seconds * (1 if body.images == 1 else 2)
        load, usage = self._load(url, body, point, seconds, self.service_pids)
        return _sample(number, point, "service", load, body, usage if self.service_pids else None)

    def _floor(self, number: int, point: Point) -> Sample:
        """The same bodies, and answers of the same length."""
        body, url = self.single[point.model], self.floor.url(self.answer_bytes[point.model])
        load, usage = self._load(url, body, point, self.plan.short_seconds, self.floor.pids)
        return _sample(number, point, "floor", load, body, usage)

    def _load(self, url: str, body: Body, point: Point, seconds: int, pids: Sequence[int]) -> tuple[wrk.Load, Usage]:
        with processes.Watch(pids) as watch, wrk.Wrk(url, body, point.connections, seconds) as run:
            load = run.load()
        return load, watch.usage

    def _limit(self, number: int, point: Point) -> Sample:
        """One connection never has company: its limit is one process and one image at a time."""
        kind = "alone" if point.connections == 1 else KINDS.get(point.part, "files")
        return self._in_process(number, point, "limit", kind, 1 if kind == "alone" else self.batches[point.model])

    def _plain_loop(self, number: int, point: Point) -> Sample:
        """In the same processes as the limit, which then rests."""
        kind = f"plain-{KINDS.get(point.part, 'files')}"
        return self._in_process(number, point, "loop", kind, self.batches[point.model])

    def _in_process(self, number: int, point: Point, contender: str, kind: str, batch: int) -> Sample:
        limit = self.limits[point.model]
        with processes.Watch(limit.pids) as watch:
            rate = limit.rate(kind, batch, self.plan.short_seconds)
        usage = watch.usage
        return Sample(number, point, contender, rate, 1000 * usage.cpu_s / (rate * usage.seconds), usage.other_cores)

    def _together(self, number: int) -> list[Sample]:
        processes.wait_until_still(self.service_pids)
        with ExitStack() as stack:
            watch = stack.enter_context(processes.Watch(self.service_pids))
            runs = {
                model: stack.enter_context(wrk.Wrk(self.service.classify_url(model), body, FEW, self.plan.seconds))
                for model, body in self.single.items()
            }
            loads = {model: run.load() for model, run in runs.items()}
        usage = watch.usage if self.service_pids else None
        return [
            _sample(number, Point("together", model, FEW), "service", load, self.single[model], usage)
            for model, load in loads.items()
        ]

    def _bulk_bodies(self, model: str) -> dict[str, Body]:
        """Each way of posting many images that the service has."""
        form = bodies.form(model, self.folder)
        pixels = pixels_of(model, [image.content for image in bodies.images_of(model)[: bodies.BULK]])
        tensor = bodies.tensor(model, pixels, self.folder)
        found = {"form": form, "tensor": tensor, "binary": replace(tensor, accept=MEDIA_TYPE.decode())}
        for body in found.values():
            self.service.check(model, body)
        return found

    def _progress(self, number: int, point: Point, taken: Sequence[Sample]) -> str:
        rates = ", ".join(f"{sample.contender} {sample.rate:,.0f}/s" for sample in taken)
        disturbed = " (disturbed by other processes)" if any(sample.disturbed for sample in taken) else ""
        where = f"{point.part} {point.model} c={point.connections}"
        return f"round {number + 1} of {self.plan.rounds}: {where}: {rates}{disturbed}"


def _sample(number: int, point: Point, contender: str, load: wrk.Load, body: Body, usage: Usage | None) -> Sample:
    images = load.rate * load.seconds * body.images
    return Sample(
        number,
        point,
        contender,
        load.rate * body.images,
        cpu_ms=1000 * usage.cpu_s / images if usage and images else None,
        other_cores=usage.other_cores if usage else 0,
        rss_mib=usage.peak_rss_mib if usage else None,
        errors=load.errors,
        latencies_ms={name: getattr(load, f"{name}_ms") for name in LATENCIES},
    )
