"""The outcome of a run: its figures, and which promises they keep or break."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from tests.abuse.soak.samples import Footprint, Sample, p99_of_quarters, quarters_per_million, slope_per_million
from tests.abuse.soak.tally import Tally

GROWTH_MB_PER_MILLION, P99_RATIO = 20.0, 1.1
# A run of less says nothing about growth, and one that is shorter nothing about latency.
REQUESTS_THAT_TELL, SECONDS_THAT_TELL = 300_000, 1800
CHECKED_THAT_TELL = 100_000
# Good requests answered 503, of all: at this load there should be none, but the machine may have other work.
REFUSED_SHARE = 0.001
BROKEN, KEPT, TOO_SHORT = "BROKEN", "kept", "not told by so short a run"


@dataclass(frozen=True)
class Promise:
    """What is promised, what was measured, and what follows."""

    what: str
    measured: str
    verdict: str


@dataclass(frozen=True)
class Run:
    """All that a run has seen. `before` and `after` are with every connection closed."""

    seconds: float
    capacity: float
    pace: float
    warm: Sequence[Sample]
    samples: Sequence[Sample]
    before: Footprint
    after: Footprint
    tally: Tally

    def figures(self) -> dict[str, Any]:
        first, last = p99_of_quarters(self.warm)
        pss = [each.footprint.pss_mb for each in self.warm]
        rss = [sum(each.footprint.rss_mb) for each in self.warm]
        return {
            "seconds": self.seconds,
            "requests": self.tally.requests,
            "capacity_a_second": self.capacity,
            "pace_a_second": self.pace,
            "requests_a_second": self.tally.requests / self.seconds if self.seconds else math.nan,
            "pss_slope_mb_per_million": slope_per_million(self.warm, pss),
            "pss_quarters_mb_per_million": quarters_per_million(self.warm, pss),
            "rss_slope_mb_per_million": slope_per_million(self.warm, rss),
            "rss_quarters_mb_per_million": quarters_per_million(self.warm, rss),
            "pss_mb": [self.before.pss_mb, self.after.pss_mb],
            "rss_mb_each": [self.before.rss_mb, self.after.rss_mb],
            "descriptors": [self.before.descriptors, self.after.descriptors],
            "threads": [self.before.threads, self.after.threads],
            "pids": [self.before.pids, self.after.pids],
            "p99_ms_of_first_and_last_quarter": [first, last],
            "checked": self.tally.checked,
            "mixed_up": self.tally.mixed_up,
            "refused": self.tally.refused,
            "wrong": self.tally.wrong,
            "hung": self.tally.hung,
        }

    def promises(self) -> list[Promise]:
        told, tally = self.figures(), self.tally
        long = self.seconds >= SECONDS_THAT_TELL
        telling = len(self.warm) >= 8 and self.warm[-1].requests - self.warm[0].requests >= REQUESTS_THAT_TELL
        growth, (first, last) = told["pss_slope_mb_per_million"], told["p99_ms_of_first_and_last_quarter"]
        more_files = self.after.descriptors - self.before.descriptors
        more_threads = self.after.threads - self.before.threads
        checked = tally.checked >= CHECKED_THAT_TELL or not long
        return [
            _promise(
                f"memory grows by at most {GROWTH_MB_PER_MILLION:g} MB per million requests",
                f"{growth:.1f} MB",
                growth <= GROWTH_MB_PER_MILLION,
                telling,
            ),
            _promise("no more descriptors than before", f"{more_files:+d}", more_files <= 0),
            _promise("no more threads than before", f"{more_threads:+d}", more_threads <= 0),
            _promise("no process replaced", f"{len(self.after.pids)}", self.before.pids == self.after.pids),
            _promise(
                f"the last quarter's p99 is at most {P99_RATIO:g} times the first's",
                f"{last:.2f} ms after {first:.2f} ms",
                last <= P99_RATIO * first,
                long and self.pace > 0,
            ),
            _promise(
                "no answer is mixed up with another's",
                f"{tally.mixed_up} of {tally.checked:,} checked",
                not tally.mixed_up and checked and tally.checked > 0,
            ),
            _promise("every bad request is answered as it should be, none with 5xx", f"{tally.wrong}", not tally.wrong),
            _promise("nothing hangs", f"{tally.hung}", not tally.hung),
            _promise(
                "nobody is refused at this load",
                f"{tally.refused} of {tally.requests:,}",
                tally.refused <= REFUSED_SHARE * tally.requests,
                self.pace > 0,
            ),
        ]

    def is_broken(self) -> bool:
        return any(promise.verdict == BROKEN for promise in self.promises())

    def text(self) -> str:
        """For people."""
        told = self.figures()
        lines = [
            f"{self.tally.requests:,} requests in {self.seconds:,.0f} s, {told['requests_a_second']:,.0f} a second"
            + (f" at {self.pace / self.capacity:.0%} of {self.capacity:,.0f}" if self.pace else ""),
            f"memory (PSS) {self.before.pss_mb:.1f} → {self.after.pss_mb:.1f} MB; per million requests: "
            f"PSS {told['pss_slope_mb_per_million']:+.1f}, by quarters {told['pss_quarters_mb_per_million']:+.1f}; "
            f"RSS {told['rss_slope_mb_per_million']:+.1f}, by quarters {told['rss_quarters_mb_per_million']:+.1f} MB",
            "",
        ]
        counts = sorted(self.tally.outcomes.items())
        lines += [f"  {kind:<46} {outcome:<12} {number:>10,}" for (kind, outcome), number in counts]
        lines += ["", *(f"  {each.verdict:<8} {each.what}: {each.measured}" for each in self.promises())]
        lines += [f"  example: {example}" for example in self.tally.examples]
        return "\n".join(lines)

    def write(self, path: Path) -> None:
        """As JSON; whole or not at all."""
        document = {
            "figures": self.figures(),
            "promises": [vars(promise) for promise in self.promises()],
            "outcomes": [[*key, number] for key, number in sorted(self.tally.outcomes.items())],
            "examples": self.tally.examples,
            "samples": [_told(each) for each in self.samples],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        # What is not a number is null.
        partial.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
        partial.replace(path)


def _promise(what: str, measured: str, holds: bool, telling: bool = True) -> Promise:
    return Promise(what, measured, (KEPT if holds else BROKEN) if telling else TOO_SHORT)


def _told(sample: Sample) -> dict[str, Any]:
    names = ("seconds", "requests", "rate", "p50_ms", "p99_ms", "machine_s")
    return {name: getattr(sample, name) for name in names} | vars(sample.footprint)
