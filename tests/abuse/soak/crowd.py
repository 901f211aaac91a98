"""Clients that ask well and badly, at a pace or as fast as they are answered, and the tally of what they met."""

import asyncio
import random
import time
from collections.abc import Sequence
from contextlib import suppress

from tests.abuse.soak.offences import Offences
from tests.abuse.soak.questions import Asked, Library, Questions
from tests.abuse.soak.tally import Tally
from tests.abuse.wire import Address, Ended, Hung, Wire, connect

# After so many requests a client connects anew, and one that waits for so long for an answer is said to hang.
REQUESTS_A_CONNECTION, HUNG_S = 200, 20.0
# Of all requests: those that are bad, and of these, clients that leave.
BAD_SHARE, LEAVING_SHARE = 0.1, 0.15
# A client that is further behind its pace forgets what it has missed.
LAG_S = 1.0


class Crowd:
    """Quick clients, over connections that they keep for a while."""

    def __init__(
        self,
        address: Address,
        libraries: Sequence[Library],
        tally: Tally,
        bad_share: float = BAD_SHARE,
        only_images: bool = False,
        seed: int = 0,
    ) -> None:
        """`only_images`: of what is good, lone images of the first library alone."""
        self.tally = tally
        self.wires: set[Wire] = set()
        self._address = address
        self._chance = random.Random(seed)
        self._libraries = libraries
        self._questions = Questions(libraries, self._chance)
        self._offences = Offences(libraries, self._chance)
        self._bad_share = bad_share
        self._only_images = only_images
        self._stopped = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, clients: int, rate: float = 0.0) -> None:
        """So many quick clients; with a rate, so many requests a second of all together."""
        interval = clients / rate if rate else 0.0
        self._tasks += [asyncio.create_task(self._client(interval)) for _ in range(clients)]
        self._tasks.append(asyncio.create_task(self._look_after()))

    async def stop(self) -> None:
        """Every connection is closed then. Raises what a client failed by."""
        self._stopped.set()
        done, late = await asyncio.wait(self._tasks, timeout=HUNG_S + 5) if self._tasks else (set(), set())
        for task in late:
            task.cancel()
        for wire in list(self.wires):
            wire.close()
        self._tasks = []
        for task in done:
            task.result()

    async def offend_once(self) -> None:
        """One of each bad request, on a connection of its own."""
        for asked in self._offences.each():
            wire = await connect(self._address, self.wires)
            self.tally.bad(asked, await asyncio.wait_for(wire.ask(asked.data), HUNG_S))
            wire.close()

    async def _client(self, interval: float) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + interval * self._chance.random()
        while not self._stopped.is_set():
            try:
                wire = await connect(self._address, self.wires)
            except OSError as error:
                self.tally.broken("connecting", repr(error))
                await asyncio.sleep(0.1)
                continue
            own_id = self._questions.new_id()
            for _ in range(REQUESTS_A_CONNECTION):
                if interval:
                    due = await self._paced(due, interval)
                if self._stopped.is_set() or not await self._ask(wire, own_id):
                    break
            wire.close()

    async def _paced(self, due: float, interval: float) -> float:
        """Returns when the next request is due; intervals vary, lest clients move in step."""
        now = asyncio.get_running_loop().time()
        if due > now:
            await asyncio.sleep(due - now)
        return max(due, now - LAG_S) + interval * 2 * self._chance.random()

    async def _ask(self, wire: Wire, own_id: bytes) -> bool:
        """Whether the connection may be used again."""
        bad = self._chance.random() < self._bad_share
        if bad and self._chance.random() < LEAVING_SHARE:
            return self._leave(wire)
        asked = self._offences.next() if bad else self._good(own_id)
        started = time.perf_counter()
        try:
            answer = await wire.ask(asked.data)
        except Hung:
            self.tally.hangs(asked)
            return False
        except Ended as error:
            self.tally.ended(asked, error)
            return False
        if bad:
            self.tally.bad(asked, answer)
        else:
            self.tally.good(asked, answer, time.perf_counter() - started)
        return not answer.is_last

    def _good(self, own_id: bytes) -> Asked:
        if self._only_images:
            return self._questions.single(self._libraries[0], own_id)
        return self._questions.next(own_id)

    def _leave(self, wire: Wire) -> bool:
        leaving = self._offences.leaving()
        wire.send(leaving.data)
        if leaving.reset:
            wire.reset()
        self.tally.event(leaving.kind, "reset" if leaving.reset else "closed")
        self.tally.requests += 1
        return False

    async def _look_after(self) -> None:
        """Say of those who wait for too long that they hang."""
        while not self._stopped.is_set():
            await self._pause(1)
            now = asyncio.get_running_loop().time()
            for wire in [wire for wire in self.wires if wire.waits() and now - wire.since > HUNG_S]:
                wire.give_up()

    async def _pause(self, seconds: float) -> bool:
        """Whether the end has come meanwhile."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopped.wait(), seconds)
        return self._stopped.is_set()
