"""Good and bad traffic for long, and what it does to the service.

    python -m tests.abuse.soak --minutes 60
    python -m tests.abuse.soak --million

Starts a service of its own, or asks the one at --url, whose process is told by --pid. First learns the right answers
and the capacity, as much as these clients get out of it on this machine, which they share with it. Then asks at a pace
below it. Ctrl-C ends a run early, with its report. Ends with status 1 where a promise is broken.
"""

import argparse
import asyncio
import math
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import uvloop

from tests.abuse.soak import plot
from tests.abuse.soak.crowd import BAD_SHARE, Crowd
from tests.abuse.soak.libraries import learn
from tests.abuse.soak.report import Run
from tests.abuse.soak.rousing import rouse
from tests.abuse.soak.samples import Footprint, Sample, sample
from tests.abuse.soak.slow import SlowClients
from tests.abuse.soak.tally import Tally
from tests.abuse.wire import Address
from tests.conftest import serving

# Until the service has seen that its clients have gone.
SETTLED_S = 2.0
# What fills up at the start is no growth.
WARM_UP_SHARE, WARM_UP_REQUESTS = 0.1, 100_000
ENDURANCE_BAD_SHARE = 0.01


@dataclass(frozen=True)
class Plan:
    """`requests` is 0 where it is the time that ends a run, and else they are asked for as fast as can be."""

    address: Address
    pid: int
    out: Path
    seconds: float
    requests: int
    clients: int
    share: float
    slow: int
    every_s: float
    capacity_s: float

    @property
    def is_endurance(self) -> bool:
        return self.requests > 0


class Soak:
    """One run."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._tally = Tally()
        self._over = asyncio.Event()
        self._samples: list[Sample] = []
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._over.set)

    async def run(self) -> Run:
        plan = self._plan
        self._libraries = await learn(plan.address)
        images = [len(library.items) for library in self._libraries]
        print(f"learned the answers to {images} images", flush=True)
        await self._rouse()
        capacity = 0.0 if plan.is_endurance else await self._capacity()
        await asyncio.sleep(SETTLED_S)
        before = Footprint.of(plan.pid)
        started = asyncio.get_running_loop().time()
        await self._ask(capacity * plan.share)
        seconds = asyncio.get_running_loop().time() - started
        await asyncio.sleep(SETTLED_S)
        after = Footprint.of(plan.pid)
        return Run(seconds, capacity, capacity * plan.share, self._warm(), self._samples, before, after, self._tally)

    async def _rouse(self) -> None:
        """Until no more threads come of it."""
        threads = 0
        while threads != (threads := Footprint.of(self._plan.pid).threads):
            await rouse(self._plan.address)

    async def _capacity(self) -> float:
        """Requests a second of as many clients as ask again as soon as they are answered."""
        plan, tally = self._plan, Tally()
        crowd = Crowd(plan.address, self._libraries, tally, seed=7)
        await crowd.offend_once()
        crowd.start(plan.clients)
        await asyncio.sleep(plan.capacity_s / 5)
        before, started = tally.requests, asyncio.get_running_loop().time()
        await self._wait(plan.capacity_s * 4 / 5)
        rate = (tally.requests - before) / (asyncio.get_running_loop().time() - started)
        await crowd.stop()
        print(f"capacity: {rate:,.0f} requests a second", flush=True)
        return rate

    async def _ask(self, rate: float) -> None:
        plan = self._plan
        bad = ENDURANCE_BAD_SHARE if plan.is_endurance else BAD_SHARE
        crowd = Crowd(plan.address, self._libraries, self._tally, bad, only_images=plan.is_endurance)
        slow = SlowClients(plan.address, self._libraries[0], self._tally)
        crowd.start(plan.clients, rate)
        slow.start(plan.slow)
        await self._watch()
        await asyncio.gather(crowd.stop(), slow.stop())

    async def _watch(self) -> None:
        """Until the end: a sample now and then."""
        loop, plan, tally = asyncio.get_running_loop(), self._plan, self._tally
        started = loop.time()
        while not self._over.is_set():
            left = math.inf if plan.is_endurance else started + plan.seconds - loop.time()
            if left <= 0 or 0 < plan.requests <= tally.requests:
                return
            await self._wait(min(plan.every_s, left))
            lone_ms, tally.lone_ms = tally.lone_ms, tally.lone_ms[:0]
            last = self._samples[-1] if self._samples else None
            self._samples.append(sample(loop.time() - started, tally.requests, plan.pid, last, lone_ms))
            self._tell(self._samples[-1])

    async def _wait(self, seconds: float) -> None:
        """So long, or until somebody ends the run."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._over.wait(), seconds)

    def _tell(self, now: Sample) -> None:
        held, tally = now.footprint, self._tally
        print(
            f"{now.seconds:6.0f} s  {now.requests:>9,}  {now.rate:6,.0f}/s  PSS {held.pss_mb:6.1f} MB  "
            f"RSS {'+'.join(f'{each:.0f}' for each in held.rss_mb)}  {held.descriptors} fds  {held.threads} threads  "
            f"p50 {now.p50_ms:.2f}  p99 {now.p99_ms:.2f} ms  "
            f"mixed up {tally.mixed_up}  wrong {tally.wrong}  hung {tally.hung}  refused {tally.refused}",
            flush=True,
        )

    def _warm(self) -> list[Sample]:
        """Without those of the start."""
        if self._plan.is_endurance:
            return [each for each in self._samples if each.requests >= WARM_UP_REQUESTS]
        return [each for each in self._samples if each.seconds >= WARM_UP_SHARE * self._samples[-1].seconds]


@contextmanager
def service(url: str | None, pid: int | None) -> Iterator[tuple[Address, int]]:
    """One that runs, or one of our own: its address and process."""
    if url:
        place = urlsplit(url)
        yield (place.hostname or "localhost", place.port or 80), pid or 0
        return
    with tempfile.TemporaryDirectory() as home, serving(Path(home)) as server:
        yield ("127.0.0.1", int(server.url.rpartition(":")[2])), server.process.pid


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.abuse.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--million", action="store_true", help="small images as fast as can be, in place of a pace")
    parser.add_argument("--requests", type=int, default=1_000_000, help="how many of them")
    parser.add_argument("--url", help="a service that runs already")
    parser.add_argument("--pid", type=int, help="its process; memory and descriptors are its and its children's")
    parser.add_argument("--out", type=Path, default=Path(".cache/soak"), help="where the report goes")
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--share", type=float, default=0.58, help="of the capacity, that is asked for")
    parser.add_argument("--slow", type=int, default=4, help="slow clients of each kind")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two samples")
    parser.add_argument("--capacity-seconds", type=float, default=15.0)
    found = parser.parse_args(given)
    if found.url and not found.pid:
        parser.error("--url needs --pid")
    return found


def main(given: list[str] | None = None) -> int:
    """The exit status."""
    asked = arguments(given)
    with service(asked.url, asked.pid) as (address, pid):
        plan = Plan(
            address,
            pid,
            asked.out,
            asked.minutes * 60,
            asked.requests if asked.million else 0,
            asked.clients,
            asked.share,
            0 if asked.million else asked.slow,
            asked.every,
            asked.capacity_seconds,
        )
        run = uvloop.run(_run(plan))
    print(f"\n{run.text()}\n")
    name = "endurance" if plan.is_endurance else "soak"
    run.write(asked.out / f"{name}.json")
    plot.write(run, asked.out / f"{name}.png")
    print(f"wrote {asked.out / name}.json and .png")
    return int(run.is_broken())


async def _run(plan: Plan) -> Run:
    return await Soak(plan).run()


if __name__ == "__main__":
    sys.exit(main())
