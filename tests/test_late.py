"""service.late: an application made when it is first asked for."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from service.late import Late
from service.protocol import Application, Message, Receive, Scope, Send

LIFESPAN: Scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}


@asynccontextmanager
async def started(application: Application) -> AsyncIterator[None]:
    """An application that has been told of its start, and in the end of its end, as a server does it."""
    orders: asyncio.Queue[Message] = asyncio.Queue()
    answers: asyncio.Queue[Message] = asyncio.Queue()
    life: asyncio.Future[None] = asyncio.ensure_future(application(LIFESPAN, orders.get, answers.put))
    await orders.put({"type": "lifespan.startup"})
    assert (await answers.get())["type"] == "lifespan.startup.complete"
    try:
        yield
    finally:
        await orders.put({"type": "lifespan.shutdown"})
        assert (await answers.get())["type"] == "lifespan.shutdown.complete"
        await life


class Behind:
    """An application that says of itself what happened to it."""

    def __init__(self) -> None:
        self.made: list[Application] = []
        self.heard: list[str] = []

    def make(self) -> Application:
        self.made.append(self)
        return self

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            self.heard.append(scope["path"])
            return
        for stage in ("startup", "shutdown"):
            await receive()
            self.heard.append(stage)
            await send({"type": f"lifespan.{stage}.complete"})


async def _ask(application: Application, path: str) -> None:
    async def nothing(*_: object) -> Message:
        raise AssertionError("not needed")

    await application({"type": "http", "path": path}, nothing, nothing)  # type: ignore[arg-type]


def test_it_is_made_once_when_first_asked_and_told_of_start_and_end() -> None:
    """Two clients at once make one application, which hears of its start first and of its end last."""
    behind, told = Behind(), list[str]()
    late = Late(behind.make, lambda: told.append("start"), lambda: told.append("stop"))

    async def life() -> None:
        async with started(late):
            assert told == ["start"]
            assert not behind.made
            await asyncio.gather(_ask(late, "/one"), _ask(late, "/two"))
            assert len(behind.made) == 1
        assert told == ["start", "stop"]

    asyncio.run(life())
    assert behind.heard == ["startup", "/one", "/two", "shutdown"]


def test_nobody_asks_and_nothing_is_made() -> None:
    """A worker that starts and ends without a client of its makes no application."""
    behind = Behind()

    async def life() -> None:
        async with started(Late(behind.make, lambda: None, lambda: None)):
            pass

    asyncio.run(life())
    assert not behind.made


def test_a_start_that_fails_is_told_to_the_server_and_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """So that the worker ends, and another takes its place, rather than answer 503 for ever."""
    sent: list[Message] = []

    def fail() -> None:
        raise RuntimeError("no weights")

    async def receive() -> Message:
        return {"type": "lifespan.startup"}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(Late(Behind().make, fail, fail)(LIFESPAN, receive, send))
    assert sent == [{"type": "lifespan.startup.failed", "message": "no weights"}]
    assert "no weights" in caplog.text


def test_what_cannot_be_made_is_tried_again_and_harms_nobody_else() -> None:
    """Who asks meets the error, the next one asks anew, and the worker ends in order."""

    class Broken(Behind):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await receive()
            raise ValueError("broken")

    broken = Broken()

    async def life() -> None:
        late = Late(broken.make, lambda: None, lambda: None)
        async with started(late):
            for _ in range(2):
                with pytest.raises(ValueError, match="broken"):
                    await asyncio.wait_for(_ask(late, "/"), 5)

    asyncio.run(life())
    assert len(broken.made) == 2
