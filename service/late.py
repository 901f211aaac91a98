"""BentoML's application, made when it is first asked for something.

Most workers never need it, and with all it imports it takes 45 MB and most of a second.
"""

import asyncio
import gc
import logging
from collections.abc import Callable

from service.errors import StartupError
from service.protocol import Application, Message, Receive, Scope, Send

logger = logging.getLogger("trueodds")


class Late:
    """An application that stands for the one of `make`: told of the worker's life in its place, handed all else.

    `start` is called when the worker starts, and `stop` when it ends.
    """

    def __init__(self, make: Callable[[], Application], start: Callable[[], object], stop: Callable[[], None]) -> None:
        self._make = make
        self._start = start
        self._stop = stop
        self._lock = asyncio.Lock()
        self._application: Application | None = None
        self._orders: asyncio.Queue[Message] = asyncio.Queue()
        self._life: asyncio.Future[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._live(receive, send)
        async with self._lock:
            if self._application is None:
                self._application = await self._made()
        await self._application(scope, receive, send)
        return None

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            self._start()
        except Exception as error:
            # What a StartupError says is all there is to know.
            logger.error("the worker cannot start: %s", error, exc_info=not isinstance(error, StartupError))
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        if self._life:
            await self._orders.put({"type": "lifespan.shutdown"})
            await self._life
        self._stop()
        await send({"type": "lifespan.shutdown.complete"})

    async def _made(self) -> Application:
        application = await asyncio.get_running_loop().run_in_executor(None, self._make)
        started: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def send(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                started.set_result(None)
            elif message["type"] == "lifespan.startup.failed":
                started.set_exception(RuntimeError(message.get("message", "BentoML's application did not start")))

        await self._orders.put({"type": "lifespan.startup"})
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        life: asyncio.Future[None] = asyncio.ensure_future(application(scope, self._orders.get, send))
        await asyncio.wait({started, life}, return_when=asyncio.FIRST_COMPLETED)
        if not started.done():
            await life
            raise RuntimeError("BentoML's application ended before it had started")
        await started
        self._life = life
        # It stays, like all else that has started; see Front.started.
        gc.freeze()
        return application
