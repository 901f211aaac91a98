"""The HTTP server of one worker: uvicorn's, with our protocol and an even share of the connections.

Workers share one listening socket, and the kernel gives a connection to whoever asks first. Left to that, keep-alive
connections pile up on one worker while the others idle (with 64 of them, throughput halved). So a worker that has more
connections than another lets it go first.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from typing import Any

import uvicorn

from service.board import Board
from service.protocol import Connection, Connections, Deadlines

logger = logging.getLogger("trueodds")

TICK_S = 0.5
# The shortest the event loop can wait; time enough for another worker to accept.
COURTESY_S = 0.001
# With no descriptor or memory left for another connection, until some may be free again.
EXHAUSTED_S = 0.1
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
# Connections accepted in one turn of the event loop.
ACCEPTED_AT_ONCE = 16


class Listener:
    """Accepts connections from a socket that other workers accept from too."""

    def __init__(self, listening: socket.socket, board: Board, connect: Callable[[socket.socket], None]) -> None:
        self._socket = listening
        self._board = board
        self._connect = connect
        self._loop = asyncio.get_running_loop()
        self._been_courteous = False
        listening.setblocking(False)
        self._watch()

    def close(self) -> None:
        self._loop.remove_reader(self._socket)
        self._closed = True

    async def wait_closed(self) -> None:
        """Nothing is left to wait for."""

    _closed = False

    def _watch(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._socket, self._accept)

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._socket)
        self._loop.call_later(seconds, self._watch)

    def _accept(self) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            if self._has_more_than_others() and not self._been_courteous:
                # Once: if no other worker wants it, it may be stuck or dead.
                self._been_courteous = True
                return self._pause(COURTESY_S)
            self._been_courteous = False
            try:
                connection, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return None
            except OSError as error:
                if error.errno not in EXHAUSTED:
                    raise
                logger.warning("no connection can be accepted: %s", error)
                return self._pause(EXHAUSTED_S)
            self._connect(connection)
        return None

    def _has_more_than_others(self) -> bool:
        fewest = self._board.fewest_connections
        return self._board.connections > fewest + fewest // 8


class Server(uvicorn.Server):
    """uvicorn's start, signals and end around our listener and protocol."""

    def __init__(self, config: uvicorn.Config, deadlines: Deadlines, board: Board) -> None:
        super().__init__(config)
        self._board = board
        self._deadlines = deadlines
        self._connecting: set[asyncio.Task[Any]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])
        config = self.config
        self._connections = Connections(
            config.loaded_app,
            self._deadlines,
            root_path=config.root_path,
            state=self.lifespan.state,
            board=self._board,
        )
        # uvicorn's shutdown waits for these.
        self.server_state.connections = self._connections.open  # type: ignore[assignment]
        self.server_state.tasks = self._connections.tasks
        self._connections.tick()
        self.servers = [Listener(each, self._board, self._connect) for each in sockets or ()]  # type: ignore[misc]

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        if counter % round(TICK_S / 0.1) == 0:
            self._connections.tick()
            self._board.refresh()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._board.leave()
        await super().shutdown(sockets)

    def _connect(self, accepted: socket.socket) -> None:
        self._connections.connecting += 1
        self._connections.count()
        task = asyncio.get_running_loop().create_task(self._connected(accepted))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connected(self, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        if accepted.family in (socket.AF_INET, socket.AF_INET6):
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: Connection(self._connections), accepted, ssl=self.config.ssl
            )
        except OSError:
            # It did not shake hands, or left before.
            accepted.close()
        finally:
            self._connections.connecting -= 1
            self._connections.count()
