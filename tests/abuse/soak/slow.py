"""Clients that take their time: silent ones, and such as send a byte now and then. The service is to cut them off."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from tests.abuse.soak.questions import RIGHT, Judge, Library, classify, head
from tests.abuse.soak.tally import Tally
from tests.abuse.wire import Address, Answer, Ended, Wire, connect

# The service's own deadlines, and what is granted beyond: half a second between two looks at them, and the machine.
HEAD_S, BODY_S, IDLE_S, GRACE_S = 10.0, 30.0, 75.0, 3.0
# A slow upload that is in time takes so long.
UPLOAD_S = 15.0
Result = TypeVar("Result")


class Over(Exception):
    """The run ends."""


class SlowClients:
    """Some of each kind, which begin again whenever they are cut off."""

    def __init__(self, address: Address, library: Library, tally: Tally, seed: int = 1) -> None:
        self._address = address
        self._library = library
        self._tally = tally
        self._chance = random.Random(seed)
        self._over = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, each: int) -> None:
        kinds = {
            "silence": self._silent,
            "dribbled head": self._dribbler,
            "slow upload": self._slow_upload,
            "endless upload": self._endless_upload,
            "idle connection": self._idler,
        }
        self._tasks = [asyncio.create_task(self._run(*kind)) for kind in kinds.items() for _ in range(each)]

    async def stop(self) -> None:
        self._over.set()
        await asyncio.gather(*self._tasks)

    async def _run(self, kind: str, live: Callable[[Wire], Awaitable[str]]) -> None:
        """`live` returns what became of the client, empty where that is as it should be."""
        await asyncio.sleep(self._chance.random())
        while not self._over.is_set():
            wires: set[Wire] = set()
            try:
                fault = await live(await connect(self._address, wires))
            except Over:
                fault = ""
            except (OSError, Ended, TimeoutError) as error:
                fault = repr(error)
            for wire in list(wires):
                wire.close()
            if fault and not self._over.is_set():
                self._tally.broken(kind, fault)
                await asyncio.sleep(1)
            elif not self._over.is_set():
                self._tally.event(kind, "as promised")

    async def _silent(self, wire: Wire) -> str:
        await self._within(wire.ended(), HEAD_S + GRACE_S)
        return ""

    async def _dribbler(self, wire: Wire) -> str:
        line = b"POST / HTTP/1.1\r\nHost: soak\r\nX: " + b"y" * 1000
        return _expect(408, await self._trickled(wire, [line[i : i + 1] for i in range(len(line))], HEAD_S, 0.5))

    async def _endless_upload(self, wire: Wire) -> str:
        body = self._library.items[0].body
        path = classify(self._library.model)
        wire.send(head(path, [b"Content-Type: image/png"], body))
        pieces = [body[i : i + 1] for i in range(len(body))]
        return _expect(408, await self._trickled(wire, pieces, BODY_S, 1.0))

    async def _slow_upload(self, wire: Wire) -> str:
        item = self._chance.choice(self._library.items)
        request = head(classify(self._library.model), [b"Content-Type: " + item.content_type], item.body) + item.body
        step = len(request) // 30 + 1
        pieces = [request[i : i + step] for i in range(0, len(request), step)]
        answer = await self._trickled(wire, pieces, BODY_S, UPLOAD_S / len(pieces))
        verdict = Judge([item.truth]).one(answer)
        return "" if verdict == RIGHT else f"{verdict} {answer.status}"

    async def _idler(self, wire: Wire) -> str:
        answer = await self._within(wire.ask(b"GET /livez HTTP/1.1\r\nHost: soak\r\n\r\n"), GRACE_S)
        await self._within(wire.ended(), IDLE_S + GRACE_S)
        return _expect(200, answer)

    async def _trickled(self, wire: Wire, pieces: Sequence[bytes], limit_s: float, pause_s: float) -> Answer:
        """The answer to what is sent piece by piece."""

        async def feed() -> None:
            for piece in pieces:
                if not wire.is_open:
                    return
                wire.send(piece)
                await asyncio.sleep(pause_s)

        feeder = asyncio.create_task(feed())
        try:
            return await self._within(wire.answer(), limit_s + GRACE_S)
        finally:
            feeder.cancel()

    async def _within(self, awaited: Awaitable[Result], seconds: float) -> Result:
        """Raises TimeoutError, or Over if the run ends before."""
        task, over = asyncio.ensure_future(awaited), asyncio.create_task(self._over.wait())
        try:
            done, _ = await asyncio.wait({task, over}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if task in done:
                return task.result()
            if over in done:
                raise Over
            raise TimeoutError(f"nothing within {seconds:g} s")
        finally:
            over.cancel()
            task.cancel()


def _expect(status: int, answer: Answer) -> str:
    return "" if answer.status == status else f"answered {answer.status} in place of {status}"
