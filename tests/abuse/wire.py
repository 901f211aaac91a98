"""One connection to the service, in bytes: what is sent is sent as it is, and what comes back is told."""

import asyncio
import socket
import struct
from typing import NamedTuple, cast

END = b"\r\n\r\n"
LENGTH = b"\r\ncontent-length: "
Address = tuple[str, int]


class Answer(NamedTuple):
    """The head is in small letters, without the empty line."""

    status: int
    head: bytes
    body: bytes

    def header(self, name: bytes) -> bytes:
        """Empty where there is none."""
        return self.head.partition(b"\r\n%b: " % name)[2].partition(b"\r\n")[0]

    @property
    def is_last(self) -> bool:
        return b"\r\nconnection: close" in self.head


class Ended(Exception):
    """The connection ended before an answer."""


class Hung(Exception):
    """There was no answer in time."""


class Wire(asyncio.Protocol):
    """Answers are awaited one at a time and in order. `opened` holds those that are open, for who looks after them."""

    def __init__(self, opened: "set[Wire]") -> None:
        self._loop = asyncio.get_running_loop()
        self._opened = opened
        self._received = b""
        self._error: Exception | None = None
        self._waiter: asyncio.Future[Answer] | None = None
        self._ended: asyncio.Future[None] = self._loop.create_future()
        # On the loop's clock; when what is waited for was asked.
        self.since = 0.0

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._opened.add(self)

    def data_received(self, data: bytes) -> None:
        self._received = self._received + data if self._received else data
        self._tell()

    def connection_lost(self, exc: Exception | None) -> None:
        self._opened.discard(self)
        self._error = self._error or Ended(str(exc or "closed"))
        if not self._ended.done():
            self._ended.set_result(None)
        if self._waiter and not self._waiter.done():
            self._waiter.set_exception(self._error)

    # Called by clients.

    @property
    def is_open(self) -> bool:
        return self._error is None

    def send(self, data: bytes) -> None:
        self._transport.write(data)

    async def ask(self, data: bytes) -> Answer:
        """Raises Ended or Hung."""
        self._transport.write(data)
        return await self.answer()

    async def answer(self) -> Answer:
        """The next. Raises Ended, or Hung if whoever looks after this connection says so."""
        self._waiter = waiter = self._loop.create_future()
        self.since = self._loop.time()
        self._tell()
        if not waiter.done() and self._error:
            raise self._error
        try:
            answer: Answer = await waiter
            return answer
        finally:
            self._waiter = None

    def waits(self) -> bool:
        """Whether an answer is waited for."""
        return self._waiter is not None

    def give_up(self) -> None:
        """There has been no answer for too long."""
        self._error = Hung()
        self._transport.abort()

    async def ended(self) -> None:
        """Returns when the connection has ended."""
        await asyncio.shield(self._ended)

    def close(self) -> None:
        self._transport.close()

    def reset(self) -> None:
        """Leave without a farewell: the other side sees ECONNRESET."""
        raw = cast("socket.socket", self._transport.get_extra_info("socket"))
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    # The rest.

    def _tell(self) -> None:
        if not self._waiter or self._waiter.done():
            return
        end = self._received.find(END)
        if end < 0:
            return
        head = self._received[:end].lower()
        start = end + len(END)
        length = head.partition(LENGTH)[2].partition(b"\r\n")[0]
        stop = start + int(length or 0)
        if len(self._received) < stop:
            return
        answer = Answer(int(head[9:12]), head, self._received[start:stop])
        self._received = self._received[stop:]
        self._waiter.set_result(answer)


async def connect(address: Address, opened: set[Wire]) -> Wire:
    _, wire = await asyncio.get_running_loop().create_connection(lambda: Wire(opened), *address)
    return wire
