"""More than the service can do, and clients that take their time: what becomes of everybody else.

    python -m tests.abuse.overload

Starts a service of its own. Goodput: answers in time of as many clients as saturate it, and of ten times as many, each
of which asks again as soon as it is told anything. Slow clients: latency beside so many that send a byte now and then.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import uvloop

from loadtest.processes import cpu_s, tree
from tests.abuse.soak.questions import classify, head
from tests.abuse.soak.samples import percentiles
from tests.abuse.wire import Address, Answer, Ended, Wire, connect
from tests.conftest import fixtures, serving

SATURATING, TIMES = 64, 10
# Until what a number of clients does has settled, in seconds.
SETTLING_S = 1.5
# Of which a queue of SATURATING clients takes a part, and one of TIMES as many more than all.
DEADLINES_MS = {"cifar10": 1000, "digits": 100}
# Of a model that is not overloaded, so many lone requests a second.
PROBES_A_SECOND = 50


@dataclass
class Outcome:
    """Of some clients over a while. Latencies in ms, of what was answered with 200."""

    seconds: float = 0.0
    cpu_s: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    served_ms: list[float] = field(default_factory=list)
    # Refusals that are not as promised.
    faults: list[str] = field(default_factory=list)

    @property
    def goodput(self) -> float:
        return self.statuses[200] / self.seconds

    @property
    def cpu_ms(self) -> float:
        """The service's CPU time for each good answer."""
        return 1000 * self.cpu_s / max(1, self.statuses[200])

    @property
    def p99_ms(self) -> float:
        return percentiles(self.served_ms)[1]

    def refusal_ms(self, peak: "Outcome") -> float:
        """The service's CPU time for each refusal, if a good answer takes as much as at the peak."""
        good, refused = self.statuses[200], self.statuses.total() - self.statuses[200]
        return max(0.0, 1000 * self.cpu_s - good * peak.cpu_ms) / max(1, refused)

    def note(self, answer: Answer, seconds: float) -> None:
        self.statuses[answer.status] += 1
        if answer.status == 200:
            self.served_ms.append(1000 * seconds)
        elif not is_sound_refusal(answer):
            self.faults.append(f"{answer.head!r} {answer.body[:300]!r}")

    def told(self) -> str:
        return (
            f"{self.goodput:7,.0f} good/s, p99 {self.p99_ms:6.0f} ms, {self.cpu_ms:.2f} ms of CPU each, "
            f"{dict(self.statuses)}"
        )


def is_sound_refusal(answer: Answer) -> bool:
    """503 or 429 with Retry-After, as a problem document under the answer's own id."""
    if answer.status not in (429, 503) or not 1 <= int(answer.header(b"retry-after") or 0) <= 60:
        return False
    document = orjson.loads(answer.body)
    return bool(document["request_id"].encode() == answer.header(b"x-request-id"))


def requests(model: str, timeout_ms: int = 0) -> list[bytes]:
    """A post of each test image."""
    headers = [b"Content-Type: image/png", *([b"X-Request-Timeout-Ms: %d" % timeout_ms] if timeout_ms else [])]
    return [head(classify(model), headers, body) + body for body, _ in fixtures(model)]


async def crowd(address: Address, pid: int, posts: Sequence[bytes], clients: int, seconds: float) -> Outcome:
    """So many clients that ask again as soon as they are answered; what is counted begins when that has settled."""
    outcome, wires, over = Outcome(), set[Wire](), False
    counting = False

    async def client(number: int) -> None:
        wire = await connect(address, wires)
        while not over:
            number += 1
            asked = time.perf_counter()
            answer = await wire.ask(posts[number % len(posts)])
            if counting and not over:
                outcome.note(answer, time.perf_counter() - asked)

    tasks = [asyncio.create_task(client(number)) for number in range(clients)]
    await asyncio.sleep(SETTLING_S)
    before, started, counting = cpu_s(tree(pid)), time.perf_counter(), True
    await asyncio.sleep(seconds)
    outcome.seconds, over = time.perf_counter() - started, True
    outcome.cpu_s = cpu_s(tree(pid)) - before
    await asyncio.wait(tasks, timeout=30)
    for wire in list(wires):
        wire.close()
    for task in tasks:
        task.result()
    return outcome


async def probe(address: Address, model: str, seconds: float, outcome: Outcome) -> None:
    """Lone requests at an even pace, each on one of a few connections, whatever else goes on."""
    wires: set[Wire] = set()
    posts = requests(model)
    wire = await connect(address, wires)
    started = time.perf_counter()
    for number in range(round(seconds * PROBES_A_SECOND)):
        await asyncio.sleep(max(0.0, started + number / PROBES_A_SECOND - time.perf_counter()))
        asked = time.perf_counter()
        outcome.note(await wire.ask(posts[number % len(posts)]), time.perf_counter() - asked)
    outcome.seconds = time.perf_counter() - started
    wire.close()


@dataclass
class Cut:
    """How long slow clients were borne with, in seconds, and what they were told."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)


async def dawdle(address: Address, start: bytes, every_s: float, cut: Cut, ready: asyncio.Semaphore) -> None:
    """Sends `start`, then a byte now and then, until it is cut off."""
    wires: set[Wire] = set()
    async with ready:
        wire = await connect(address, wires)
        wire.send(start)
    started = time.perf_counter()

    async def dribble() -> None:
        while wire.is_open:
            await asyncio.sleep(every_s)
            if wire.is_open:
                wire.send(b"y")

    dribbling = asyncio.create_task(dribble())
    try:
        cut.statuses[(await wire.answer()).status] += 1
    except Ended:
        cut.statuses[0] += 1
    cut.seconds.append(time.perf_counter() - started)
    dribbling.cancel()
    wire.close()


async def beside_slow_clients(
    address: Address, each: int, seconds: float, model: str = "digits"
) -> tuple[Outcome, Outcome, Cut, Cut]:
    """Lone requests in quiet and beside so many slow uploads and dribbled heads; and how these fared."""
    quiet, beset, uploads, heads = Outcome(), Outcome(), Cut(), Cut()
    await probe(address, model, seconds, quiet)
    upload = head(classify(model), [b"Content-Type: image/png"], bytes(1000)) + b"\x89PNG"
    dribble = b"POST / HTTP/1.1\r\nHost: slow\r\nX: y"
    ready = asyncio.Semaphore(50)
    tasks = [asyncio.create_task(dawdle(address, upload, 2.0, uploads, ready)) for _ in range(each)]
    tasks += [asyncio.create_task(dawdle(address, dribble, 2.0, heads, ready)) for _ in range(each)]
    await asyncio.sleep(1)
    await probe(address, model, seconds, beset)
    await asyncio.gather(*tasks)
    return quiet, beset, uploads, heads


async def measure(address: Address, pid: int, seconds: float, rounds: int, slow: int) -> None:
    for model, timeout_ms in DEADLINES_MS.items():
        posts, ratios, costs = requests(model, timeout_ms), [], []
        for _ in range(rounds):
            peak = await crowd(address, pid, posts, SATURATING, seconds)
            flood = await crowd(address, pid, posts, SATURATING * TIMES, seconds)
            ratios.append(flood.goodput / peak.goodput)
            costs.append(peak.cpu_ms / flood.cpu_ms)
            for clients, outcome in ((SATURATING, peak), (SATURATING * TIMES, flood)):
                print(f"{model} {clients:5} clients: {outcome.told()}")
            print(f"  goodput {ratios[-1]:.1%}, {1000 * flood.refusal_ms(peak):.0f} µs of CPU a refusal", flush=True)
            print(f"  faults {len(peak.faults) + len(flood.faults)}", flush=True)
        each, cpu = statistics.median(ratios), statistics.median(costs)
        print(f"{model}: {each:.1%} of the peak, {cpu:.1%} for the same CPU time; medians of {rounds}", flush=True)
    quiet, beset, uploads, heads = await beside_slow_clients(address, slow, 8.0)
    print(f"p99 {quiet.p99_ms:.1f} ms in quiet, {beset.p99_ms:.1f} ms beside {slow} slow uploads and {slow} slow heads")
    print(f"uploads cut within {max(uploads.seconds):.1f} s {dict(uploads.statuses)}")
    print(f"heads cut within {max(heads.seconds):.1f} s {dict(heads.statuses)}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.abuse.overload")
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slow", type=int, default=1000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as home, serving(Path(home)) as server:
        address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
        uvloop.run(measure(address, server.process.pid, asked.seconds, asked.rounds, asked.slow))


if __name__ == "__main__":
    main()
