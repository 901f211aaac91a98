"""What a run of the benchmark came to: single measurements, and of those the medians over rounds and the ratios."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Self

# What other processes may take of the machine, in cores, before a measurement is set aside.
DISTURBANCE_CORES = 0.15


@dataclass(frozen=True)
class Point:
    """What is measured in every round: how images are posted to which model, over how many connections.

    `part` is "single", "form", "tensor", "binary", "crowd" or "together".
    """

    part: str
    model: str
    connections: int


@dataclass(frozen=True)
class Sample:
    """One measurement of one contender, "service", "limit", "loop" or "floor". `rate` is in images a second."""

    round: int
    point: Point
    contender: str
    rate: float
    cpu_ms: float | None = None
    other_cores: float = 0.0
    rss_mib: float | None = None
    errors: int = 0
    latencies_ms: dict[str, float] = field(default_factory=dict)

    @property
    def disturbed(self) -> bool:
        return self.other_cores > DISTURBANCE_CORES

    def document(self) -> dict[str, Any]:
        """As a JSON object."""
        return {**{k: v for k, v in asdict(self).items() if k != "point"}, **asdict(self.point)}


@dataclass(frozen=True)
class Spread:
    """A median and what it lies between."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Self | None:
        """None where there are none."""
        found = [value for value in values if value is not None]
        return cls(median(found), min(found), max(found)) if found else None


@dataclass(frozen=True)
class Row:
    """A point over all rounds. `of_limit` and the like: the service's rate by that of the other, round by round."""

    point: Point
    rate: Spread | None
    limit: Spread | None
    loop: Spread | None
    floor: Spread | None
    of_limit: Spread | None
    of_loop: Spread | None
    of_floor: Spread | None
    cpu_ms: Spread | None
    limit_cpu_ms: Spread | None
    latencies_ms: dict[str, Spread | None]
    floor_latencies_ms: dict[str, Spread | None]
    errors: int
    rounds: int
    disturbed: bool

    def document(self) -> dict[str, Any]:
        """As a JSON object."""
        return {**{k: v for k, v in asdict(self).items() if k != "point"}, **asdict(self.point)}


class Figures:
    """All samples of a run."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples

    def points(self, *parts: str) -> list[Point]:
        """Those measured, in the order of their first measurement's model and connections."""
        found = dict.fromkeys(sample.point for sample in self.samples if sample.point.part in parts)
        return sorted(found, key=lambda point: (point.model, parts.index(point.part), point.connections))

    def row(self, point: Point) -> Row:
        """Rounds that other processes disturbed are left out, unless all were."""
        rounds = self._rounds(point)
        calm = [a for a in rounds if not any(sample.disturbed for sample in a.values())]
        used = calm or rounds
        service = [a["service"] for a in used if "service" in a]

        def rates(contender: str) -> Spread | None:
            return Spread.of(a[contender].rate for a in used if contender in a)

        def ratio(contender: str) -> Spread | None:
            return Spread.of(_ratio(a, contender) for a in used)

        return Row(
            point,
            rate=rates("service"),
            limit=rates("limit"),
            loop=rates("loop"),
            floor=rates("floor"),
            of_limit=ratio("limit"),
            of_loop=ratio("loop"),
            of_floor=ratio("floor"),
            cpu_ms=Spread.of(sample.cpu_ms for sample in service),
            limit_cpu_ms=Spread.of(a["limit"].cpu_ms for a in used if "limit" in a),
            latencies_ms=_latencies(service),
            floor_latencies_ms=_latencies([a["floor"] for a in used if "floor" in a]),
            errors=sum(a["service"].errors for a in rounds if "service" in a),
            rounds=len(used),
            disturbed=not calm,
        )

    def compared(self, point: Point, other: Point) -> Spread | None:
        """The service's rate at one point by that at another, round by round."""
        pairs = [(a["service"], b["service"]) for a, b in zip(self._rounds(point), self._rounds(other), strict=True)]
        calm = [(a, b) for a, b in pairs if not (a.disturbed or b.disturbed)]
        return Spread.of(a.rate / b.rate for a, b in calm or pairs if b.rate)

    @property
    def peak_rss_mib(self) -> float | None:
        """The most that all processes of the service held together."""
        found = (sample.rss_mib for sample in self.samples if sample.contender == "service")
        return max((rss for rss in found if rss is not None), default=None)

    @property
    def errors(self) -> int:
        return sum(sample.errors for sample in self.samples)

    @property
    def disturbed(self) -> int:
        return sum(sample.disturbed for sample in self.samples)

    def _rounds(self, point: Point) -> list[dict[str, Sample]]:
        numbers = sorted({sample.round for sample in self.samples if sample.point == point})
        return [{s.contender: s for s in self.samples if (s.point, s.round) == (point, number)} for number in numbers]


def _latencies(samples: Sequence[Sample]) -> dict[str, Spread | None]:
    names = dict.fromkeys(name for sample in samples for name in sample.latencies_ms)
    return {name: Spread.of(sample.latencies_ms.get(name) for sample in samples) for name in names}


def _ratio(measured: dict[str, Sample], contender: str) -> float | None:
    if contender not in measured or "service" not in measured or not measured[contender].rate:
        return None
    return measured["service"].rate / measured[contender].rate
