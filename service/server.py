"""The HTTP server of one worker: uvicorn's, with our protocol and an even share of the connections.

Workers share one listening socket, and the kernel gives a connection to whoever asks first. Left to that, keep-alive
connections pile up on one worker while the others idle (with 64 of them, throughput halved). So a worker that has more
connections than another lets it go first.
"""

import asyncio
import errno
import logging
import signal
import socket
import ssl
import struct
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import uvicorn

from service.board import Board
from service.protocol import Application, Connection, Connections, Deadlines
from service.pulse import BEATS_A_SECOND, Pulse

logger = logging.getLogger("trueodds")

TICK_S = 0.5
# The shortest the event loop can wait, and how long it waits in all for another worker, which may be in the midst of
# a batch.
COURTESY_S, PATIENCE_S = 0.001, 0.03
# A worker that did not take its turn may be stuck or dead: for so long nobody waits for another.
IMPATIENCE_S = 0.5
# Who accepted how many is looked at for so long.
ROUND_S = 0.1
# With no descriptor or memory left for another connection, until some may be free again.
EXHAUSTED_S = 0.1
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
# From when nobody new gets in: what is not answered by then is given up.
END_S = 20.0
# Connections accepted in one turn of the event loop.
ACCEPTED_AT_ONCE = 256
# More than these do not wait to be accepted.
BACKLOG = 2048


class Listener:
    """Accepts connections from a socket that other workers accept from too."""

    def __init__(self, listening: socket.socket, board: Board, connect: Callable[[socket.socket], None]) -> None:
        self._socket = listening
        self._board = board
        self._connect = connect
        self._loop = asyncio.get_running_loop()
        self._courteous_until: float | None = None
        self._impatient_until = 0.0
        self._round_ends = 0.0
        self._before = board.accepted()
        listening.setblocking(False)
        self._watch()

    def close(self) -> None:
        """Accept what has come by now: the system would cut it off."""
        if not self._closed:
            self._impatient_until = float("inf")
            for _ in range(BACKLOG // ACCEPTED_AT_ONCE):
                self._accept()
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
            if self._lets_others_go_first():
                return self._pause(COURTESY_S)
            try:
                connection, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return None
            except OSError as error:
                if error.errno not in EXHAUSTED:
                    raise
                logger.warning("no connection can be accepted: %s", error)
                return self._pause(EXHAUSTED_S)
            self._board.count_accepted()
            self._connect(connection)
        return None

    def _lets_others_go_first(self) -> bool:
        now = self._loop.time()
        if now < self._impatient_until or self._may_accept(now):
            self._courteous_until = None
            return False
        if self._courteous_until is None:
            self._courteous_until = now + PATIENCE_S
        if now > self._courteous_until:
            self._courteous_until = None
            self._impatient_until = now + IMPATIENCE_S
            return False
        return True

    def _may_accept(self, now: float) -> bool:
        """Whether this worker has less than its share of the connections, and of those that came lately.

        The second because the first may be out of date: a worker in the midst of a batch counts those that have left.
        """
        board, pending = self._board, _pending(self._socket)
        if now > self._round_ends:
            self._round_ends = now + ROUND_S
            self._before = board.accepted()
        lately = [number - before for number, before in zip(board.accepted(), self._before, strict=False)]
        return _under_share(board.connections_of_all(), pending) and _under_share(lately, pending)


def _under_share(numbers: list[int], pending: int) -> bool:
    """Whether the first has less than an even share of all there are and `pending` more."""
    return numbers[0] * len(numbers) < sum(numbers) + pending


def _pending(listening: socket.socket) -> int:
    """Connections that wait to be accepted, at least one: Linux tells of a TCP socket, in tcp_info's tcpi_unacked."""
    try:
        (pending,) = struct.unpack_from("=24xI", listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 28))
    except (AttributeError, OSError, struct.error):
        return 1
    return max(1, int(pending))


class Server(uvicorn.Server):
    """uvicorn's start, signals and end around our listener and protocol."""

    def __init__(
        self,
        config: uvicorn.Config,
        deadlines: Deadlines,
        board: Board,
        pulse: Pulse | None = None,
        drain_s: float = 0.0,
        leave: Callable[[], None] = lambda: None,
        tls: ssl.SSLContext | None = None,
        operators: Application | None = None,
    ) -> None:
        """SIGTERM: `leave` is called, and `drain_s` later nobody new gets in. Without `tls`, `config` decides.

        `operators` is what is served by a second socket.
        """
        # In place of protocols that uvicorn would import for nothing.
        config.http, config.ws = Connection, "none"
        super().__init__(config)
        self._board = board
        self._deadlines = deadlines
        self._pulse = pulse or Pulse(board)
        self._drain_s = drain_s
        self._leave = leave
        self._tls = tls
        self._operators = operators
        self._connecting: set[asyncio.Task[Any]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])
        self._ports = [self._port(self.config.loaded_app, self._board)]
        if self._operators:
            # Heads are remembered for each port alone, and so few connections need not be shared evenly.
            self._ports.append(self._port(self._operators, Board()))
        self._tick()
        self._listeners = [
            Listener(each, port.board, partial(self._connect, port))
            for each, port in zip(sockets or (), self._ports, strict=False)
        ]
        self.servers = []

    def _port(self, application: Application, board: Board) -> Connections:
        root_path, state = self.config.root_path, self.lifespan.state
        return Connections(application, self._deadlines, root_path=root_path, state=state, board=board)

    def _tick(self) -> None:
        for port in self._ports:
            port.tick()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        self._pulse.beat()
        if counter % round(TICK_S * BEATS_A_SECOND) == 0:
            self._tick()
            self._board.refresh()
        return await super().on_tick(counter)

    def retire(self, number: int, frame: FrameType | None) -> None:
        """A signal's handler: as SIGTERM, but others take this worker's place or nobody is to be told."""
        self._drain_s = 0.0
        self._leave = lambda: None
        self.handle_exit(signal.SIGTERM, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer what was begun."""
        self._leave()
        await self._turn_until(self._drain_s, lambda: self.force_exit)
        for listener in self._listeners:
            listener.close()
        self._board.leave()
        for each in sockets or ():
            each.close()
        for port in self._ports:
            port.end()
        await self._turn_until(END_S, self._is_deserted)
        for port in self._ports:
            port.abort()
        await super().shutdown()

    def _is_deserted(self) -> bool:
        return self.force_exit or not (self._connecting or any(port.open for port in self._ports))

    async def _turn_until(self, seconds: float, done: Callable[[], bool]) -> None:
        """As long as usual things go on, for so long at most."""
        for _ in range(round(seconds * BEATS_A_SECOND)):
            if done():
                return
            self._pulse.beat()
            self._tick()
            await asyncio.sleep(1 / BEATS_A_SECOND)

    def _connect(self, port: Connections, accepted: socket.socket) -> None:
        port.connecting += 1
        port.count()
        task = asyncio.get_running_loop().create_task(self._connected(port, accepted))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connected(self, port: Connections, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        if accepted.family in (socket.AF_INET, socket.AF_INET6):
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tls = self._tls or self.config.ssl
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: Connection(port),
                accepted,
                ssl=tls,
                ssl_handshake_timeout=self._deadlines.head_s if tls else None,
            )
        except OSError:
            # It did not shake hands, or left before.
            accepted.close()
        finally:
            port.connecting -= 1
            port.count()
