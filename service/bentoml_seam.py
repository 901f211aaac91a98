"""The one place that reaches into BentoML: a service of its whose application stands behind one of ours.

BentoML has no public way to answer a request before its middleware. `Service.to_asgi` makes the application that a
worker serves, by a `uvicorn.Server` made next, and calling a service makes the worker's instance; tests fail when a
new BentoML does either otherwise.
"""

import asyncio
import gc
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

import uvicorn
from _bentoml_sdk import Service
from bentoml._internal.context import server_context

Message = dict[str, Any]
Asgi = Callable[[Message, Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]
Serve = Callable[[uvicorn.Config], uvicorn.Server]

# What BentoML answers: a closed set, for its metrics keep a row for every path ever asked for. Its index page is not
# among them, for it reports its visitors to a third party.
BENTOML_PATHS = frozenset({"/schema.json"})


class Front(Protocol):
    """What stands before BentoML's application."""

    def before(self, bentoml: Asgi) -> Asgi:
        """Take BentoML's application and return the one to serve; it hands on the lifespan and what is BentoML's."""
        ...

    def started(self, instance: Any) -> None:
        """Learn that a worker has made its instance of the service's class."""
        ...

    def stopped(self) -> None:
        """Learn that the worker ends."""
        ...


def fronted_service(front: Front, inner: type[Any], serve: Serve, name: str, config: dict[str, Any]) -> Service[Any]:
    """A BentoML service over `inner` that is served behind `front`, by the server that `serve` makes."""

    class Fronted(Service[Any]):  # type: ignore[misc]
        _instance: Any = None

        def to_asgi(self, is_main: bool = True) -> Asgi:
            # The worker makes its server from this name next.
            uvicorn.Server = serve  # type: ignore[misc, assignment]
            make = super().to_asgi
            return front.before(_Later(lambda: make(is_main=is_main), self, front))

        def __call__(self) -> Any:
            # BentoML's application asks for the instance too, if and when it is made.
            if self._instance is None:
                self._instance = super().__call__()
                front.started(self._instance)
            return self._instance

    return Fronted(name=name, inner=inner, config=config)


class _Later:
    """BentoML's application, made when it is first asked for something.

    Most workers never need it, and with all it imports it takes 20 MB and a quarter of a second at start.
    """

    def __init__(self, make: Callable[[], Asgi], service: Callable[[], Any], front: Front) -> None:
        self._make = make
        self._service = service
        self._front = front
        self._lock = asyncio.Lock()
        self._application: Asgi | None = None
        self._orders: asyncio.Queue[Message] = asyncio.Queue()
        self._life: asyncio.Task[None] | None = None

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return await self._live(receive, send)
        async with self._lock:
            if self._application is None:
                self._application = await self._made()
        await self._application(scope, receive, send)
        return None

    async def _live(self, receive: Any, send: Any) -> None:
        await receive()
        self._service()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        if self._life:
            await self._orders.put({"type": "lifespan.shutdown"})
            await self._life
        self._front.stopped()
        await send({"type": "lifespan.shutdown.complete"})

    async def _made(self) -> Asgi:
        application = await asyncio.get_running_loop().run_in_executor(None, self._make)
        started: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def send(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                started.set_result(None)
            elif message["type"] == "lifespan.startup.failed":
                started.set_exception(RuntimeError(message.get("message", "BentoML's application did not start")))

        await self._orders.put({"type": "lifespan.startup"})
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        self._life = asyncio.ensure_future(application(scope, self._orders.get, send))
        await started
        # It stays, like all else that has started; see Front.started.
        gc.freeze()
        return application


def worker_number() -> int:
    """Counted from 1 among the workers of an instance; 0 elsewhere."""
    return server_context.worker_index or 0


def metrics_folder() -> Path | None:
    """Where the workers of an instance keep their metrics, and nobody else: BentoML empties it at each start."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    return Path(folder) if folder and worker_number() else None
