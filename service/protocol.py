"""HTTP/1.1 over one connection: bytes → ASGI → bytes.

It costs a third of uvicorn's own protocol, and has what that lacks: deadlines for a request's head and body, a bound
on the head, and an answer that can still be read by a client which was refused while it was sending.
Parsing is llhttp's, by way of httptools. A request that comes whole under a head that came before takes a way of its
own, past the parser and ASGI, if the application offered one: see REMEMBER.
"""

import asyncio
import logging
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

import httptools

from service.board import Board
from service.heads import Heads
from service.ids import new_request_id

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]
# Answers a request, given its body, now or later by `DirectExchange.answer`; or returns False, having done nothing.
Direct = Callable[["DirectExchange", bytes], bool]

logger = logging.getLogger("trueodds")

# More of a body than this is not read ahead of the application.
READ_AHEAD_BYTES = 256 * 1024
# So much of a refused body is still read and thrown away: a sender cut off while it sends never reads the refusal.
LINGERING_BYTES, LINGERING_S = 64 * 1024 * 1024, 5.0
# A client that reads nothing of its answer for so long has gone.
STUCK_WRITE_S = 30.0
# Once the server ends, no client is waited for longer, and one that asks nothing has so long to ask a last time: what
# it sends while its connection is being closed would be lost.
ENDING_PATIENCE_S, LAST_WORD_S = 10.0, 1.0
# Many who are told 503 and ask again at once, rather than when they were told to, would leave no time to answer
# anybody. With more refusals than FLOOD from one tick to the next, the others are held back for so long, or until the
# client waits no longer.
FLOOD, HELD_S = 32, 0.5
# A body up to this size is joined to its head, which is cheaper than a second buffer to write.
JOINED_BYTES = 64 * 1024
NEVER = float("inf")

ASGI = {"version": "3.0", "spec_version": "2.3"}
# The name of an ASGI extension: `await scope["extensions"][RESPOND](status, header lines, body)` is a whole answer,
# in a quarter of the time that http.response.start and http.response.body take. The lines tell the body's length.
RESPOND = "trueodds.respond"
# The name of another: `scope["extensions"][REMEMBER](direct)` offers to answer by a plain call what comes whole under
# the same head from now on, the length of its body aside.
REMEMBER = "trueodds.remember"
# And of a third: `scope["extensions"][WAIT](time)` tells until when, by time.perf_counter, the client waits.
WAIT = "trueodds.wait"
STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
# llhttp takes 0.9 and 2.0 too, which are other protocols.
VERSIONS = ("1.0", "1.1")
TARGET = re.compile(rb"[!-~]+")
# What says how a message is framed is for this module alone to say.
FRAMING = (b"connection", b"transfer-encoding", b"keep-alive")
WITHOUT_BODY = (204, 304)
# Of answers that no application gives.
PROBLEM_LINES = (
    b"x-request-id: %b\r\nx-content-type-options: nosniff\r\ncontent-type: application/problem+json\r\n"
    b"content-length: %d\r\n"
)
DETAILS = {
    HTTPStatus.BAD_REQUEST: b"This is no request as RFC 9112 has it.",
    HTTPStatus.REQUEST_TIMEOUT: b"The head of the request did not arrive in time.",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: b"The head of the request is too large.",
    HTTPStatus.INTERNAL_SERVER_ERROR: b"The service failed to answer; its log has the reason.",
}


class _NotHttp(Exception):
    """A request that llhttp lets pass and RFC 9112 does not."""


class _OversizedHead(Exception):
    """A head that came in few pieces, so that it had ended before its length was looked at."""


@dataclass(frozen=True)
class Deadlines:
    """In seconds: for a whole request head, for the whole body after it, and for silence between two requests."""

    head_s: float = 10.0
    body_s: float = 30.0
    idle_s: float = 75.0


@dataclass
class Connections:
    """What the connections of one server share. `now` is the time of the last tick, in seconds."""

    application: Application
    deadlines: Deadlines = field(default_factory=Deadlines)
    max_head_bytes: int = 64 * 1024
    root_path: str = ""
    open: set["Connection"] = field(default_factory=set)
    state: dict[str, Any] = field(default_factory=dict)
    date: bytes = b""
    now: float = field(default_factory=time.monotonic)
    board: Board = field(default_factory=Board)
    heads: Heads[Direct] = field(default_factory=Heads)
    # Accepted, and not in `open` yet.
    connecting: int = 0
    # The next answer of each connection is its last.
    ending: bool = False
    # Told 503 since the last tick.
    refused: int = 0

    def holds_back_s(self, status: int, until: float) -> float:
        """For how long to hold back an answer of this status to a client that waits until then, by perf_counter."""
        if status != HTTPStatus.SERVICE_UNAVAILABLE or self.ending:
            return 0.0
        self.refused += 1
        return max(0.0, min(HELD_S, until - time.perf_counter())) if self.refused > FLOOD else 0.0

    def count(self) -> None:
        """Their number has changed."""
        self.board.connections = len(self.open) + self.connecting

    def end(self) -> None:
        """Let each connection end with its next answer."""
        self.tick()
        self.ending = True
        for connection in self.open:
            connection.may_ask_once_more()

    def abort(self) -> None:
        """End those that are left, answered or not."""
        for connection in list(self.open):
            connection.transport.abort()

    def tick(self) -> None:
        """Once a second or so: the time of day, and an end to what is overdue. Cheaper than timers for each request."""
        self.date = b"date: " + formatdate(usegmt=True).encode() + b"\r\n"
        self.now = time.monotonic()
        self.refused = 0
        for connection in [connection for connection in self.open if connection.is_overdue()]:
            connection.overdue()


class Connection(asyncio.Protocol):
    """One client's connection. Its requests are answered one at a time and in order, pipelined ones too."""

    transport: asyncio.Transport

    def __init__(self, shared: Connections) -> None:
        self.shared = shared
        # When what is waited for now began, by the last tick.
        self._since = shared.now
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._headers: Headers = []
        self._hosts = 0
        # Nothing has been asked yet.
        self._new = True
        self._in_head = False
        # Read while the head had not ended, and told by the parser of what has.
        self._head_bytes = self._told_bytes = 0
        self._arriving: Exchange | None = None
        self._current: Exchange | DirectExchange | None = None
        self._waiting: deque[Exchange] = deque()
        self._task: asyncio.Task[None] | None = None
        self._reading = True
        self._drained: asyncio.Future[None] | None = None
        # No request is taken any more: the connection ends once those taken are answered, and by this status if any.
        self._ending = False
        self._refusal: HTTPStatus | None = None
        self._lingering = 0

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self._scope = {
            "type": "http",
            "asgi": ASGI,
            "scheme": "https" if transport.get_extra_info("sslcontext") else "http",
            "server": _address(transport.get_extra_info("sockname")),
            "client": _address(transport.get_extra_info("peername")),
            "root_path": self.shared.root_path,
        }
        self.shared.open.add(self)
        self.shared.count()

    def connection_lost(self, exc: Exception | None) -> None:
        self.shared.open.discard(self)
        self.shared.count()
        self._ending = True
        self.resume_writing()
        for exchange in (*self._waiting, self._arriving, self._current):
            if exchange:
                exchange.leave()
        self._waiting.clear()
        if self._task:
            # Nobody waits for its answer.
            self._task.cancel()

    def eof_received(self) -> None:
        """A client that closes its side is taken to have gone: nearly all who do so have."""

    def data_received(self, data: bytes) -> None:
        if self._lingering:
            self._lingering -= len(data)
            if self._lingering <= 0:
                self.transport.abort()
        elif self._current or self._in_head or self._ending:
            if not self._ending or self._arriving:
                self._parse(data)
        elif not self._answer_directly(data):
            self._parse(data)
            self._keep(data)

    def pause_writing(self) -> None:
        self._drained = self._loop.create_future()
        self._since = self.shared.now

    def resume_writing(self) -> None:
        drained, self._drained = self._drained, None
        if drained and not drained.done():
            drained.set_result(None)
        self._since = self.shared.now

    # Called by the parser.

    def on_message_begin(self) -> None:
        self._url, self._headers, self._in_head = b"", [], True
        self._head_bytes = self._told_bytes = self._hosts = 0
        if self._current is None:
            self._since = self.shared.now

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._told_bytes += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailers come here too.
        if self._in_head:
            name = name.lower()
            self._headers.append((name, value))
            self._told_bytes += len(name) + len(value)
            if name == b"host":
                self._hosts += 1

    def on_headers_complete(self) -> None:
        self._in_head = self._new = False
        version = self._parser.get_http_version()
        if self._told_bytes > self.shared.max_head_bytes:
            raise _OversizedHead
        if version not in VERSIONS or self._hosts > 1 or (version == "1.1" and not self._hosts):
            raise _NotHttp
        raw_path, _, query = self._target().partition(b"?")
        path = raw_path.decode()
        scope = {
            **self._scope,
            "http_version": version,
            "method": self._parser.get_method().decode(),
            "path": self.shared.root_path + (unquote(path) if "%" in path else path),
            "raw_path": raw_path,
            "query_string": query,
            "headers": self._headers,
            "state": self.shared.state.copy(),
        }
        self._arriving = arriving = Exchange(self, scope, self._parser.should_keep_alive())
        scope["extensions"] = {RESPOND: arriving.respond, REMEMBER: arriving.remember, WAIT: arriving.waits}
        if self._current is None:
            self._since = self.shared.now
            self._begin(arriving)
        else:
            self._waiting.append(arriving)

    def on_body(self, body: bytes) -> None:
        if self._arriving:
            self._arriving.feed(body)

    def on_message_complete(self) -> None:
        arrived, self._arriving = self._arriving, None
        if arrived:
            arrived.complete()
        if self._waiting:
            self.pause_reading()

    # Called by exchanges and by the server.

    def pause_reading(self) -> None:
        if self._reading and not self.transport.is_closing():
            self._reading = False
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if not self._reading and not self.transport.is_closing():
            self._reading = True
            self.transport.resume_reading()

    async def drain(self) -> None:
        """Wait until the client has read most of what it was sent."""
        if self._drained:
            await self._drained

    def is_last(self, exchange: "Exchange | DirectExchange") -> bool:
        """Whether the connection ends with this exchange's answer."""
        return not (exchange.keep_alive and exchange.whole) or (
            self._ending and not self._waiting and not self._refusal
        )

    def announces_end(self, exchange: "Exchange | DirectExchange") -> bool:
        """As `is_last`, asked when the answer's head is written: what it says of the connection holds from then on."""
        if self.shared.ending and not (self._waiting or self._in_head):
            self._ending = True
        return self.is_last(exchange)

    def answered(self, exchange: "Exchange | DirectExchange") -> None:
        """The whole answer is written."""
        ends = self.is_last(exchange)
        self._current = self._task = None
        if self._refusal and not self._waiting:
            self._refuse(self._refusal)
        elif ends and exchange.whole:
            self.transport.close()
        elif ends:
            self._linger()
        elif self._waiting:
            self._begin(self._waiting.popleft())
        else:
            self.resume_reading()
        self._since = self.shared.now

    def may_ask_once_more(self) -> None:
        """The server ends."""
        if not (self._current or self._in_head or self._lingering):
            self._since = self.shared.now

    def is_overdue(self) -> bool:
        """Whether the client has kept us waiting for too long; while the application works it cannot."""
        return self.shared.now - self._since > self._patience_s()

    def overdue(self) -> None:
        """The client has kept us waiting for too long."""
        self._since = self.shared.now
        if self._lingering or self._drained:
            self.transport.abort()
        elif self._arriving and not self._arriving.late:
            self._arriving.overdue()
        elif self._in_head:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT)
        else:
            self.transport.close()

    # The rest.

    def _answer_directly(self, data: bytes) -> bool:
        """Whether this is a request that is answered past the parser. Nothing else is under way."""
        found = self.shared.heads.find(data)
        if found is None:
            return False
        direct, body = found
        self._current = exchange = DirectExchange(self)
        if direct(exchange, body):
            self._new = False
            return True
        self._current = None
        return False

    def _keep(self, data: bytes) -> None:
        """The bytes of a request that came whole and alone, for its application may want it remembered."""
        current = self._current
        if isinstance(current, Exchange) and current.whole and not (self._waiting or self._in_head or self._ending):
            current.data = data

    def _parse(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # No other protocol is spoken here. What follows the request would be of that one.
            self._ending = True
        except httptools.HttpParserError as error:
            oversized = isinstance(error.__context__, _OversizedHead)
            self._end_with(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE if oversized else HTTPStatus.BAD_REQUEST)
        if self._in_head and self._head_bytes > self.shared.max_head_bytes:
            self._end_with(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def _target(self) -> bytes:
        """The path and query asked for."""
        if not TARGET.fullmatch(self._url):
            raise _NotHttp
        if self._url.startswith(b"/"):
            return self._url.partition(b"#")[0]
        try:
            parsed = httptools.parse_url(self._url)
        except httptools.HttpParserInvalidURLError:
            # As in OPTIONS * and CONNECT host:port.
            return self._url
        return (parsed.path or b"/") + (b"?" + parsed.query if parsed.query else b"")

    def _begin(self, exchange: "Exchange") -> None:
        self._current = exchange
        self._task = self._loop.create_task(exchange.run(self.shared.application))

    def _patience_s(self) -> float:
        usual = self._usual_patience_s()
        if not self.shared.ending or usual == NEVER:
            return usual
        asks = self._drained or self._current or self._in_head or self._lingering
        return min(usual, ENDING_PATIENCE_S if asks else LAST_WORD_S)

    def _usual_patience_s(self) -> float:
        deadlines = self.shared.deadlines
        if self._lingering:
            return LINGERING_S
        if self._drained:
            return STUCK_WRITE_S
        if self._arriving:
            return LINGERING_S if self._arriving.late else deadlines.body_s
        if self._current:
            return NEVER
        return deadlines.head_s if self._in_head or self._new else deadlines.idle_s

    def _end_with(self, status: HTTPStatus) -> None:
        """What came before on this connection is answered first."""
        self._ending, self._refusal, self._in_head = True, status, False
        if self._arriving:
            # Its body is not one.
            arriving, self._arriving = self._arriving, None
            arriving.leave()
            if self._task and arriving is self._current:
                self._task.cancel()
                self._current = self._task = None
            elif arriving in self._waiting:
                self._waiting.remove(arriving)
        if self._current is None:
            self._refuse(status)

    def _refuse(self, status: HTTPStatus) -> None:
        """Answer what is no request."""
        if self.transport.is_closing():
            return
        lines, document = _problem(status)
        head = STATUS_LINES[status] + self.shared.date + lines + b"connection: close\r\n\r\n"
        self.transport.write(head + document)
        self._linger()

    def _linger(self) -> None:
        """Say that this was all, and let the client finish sending."""
        self._ending, self._lingering, self._since = True, LINGERING_BYTES, self.shared.now
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.resume_reading()


class Exchange:
    """One request and its answer, as an ASGI application sees them."""

    def __init__(self, connection: Connection, scope: Scope, keep_alive: bool) -> None:
        self.keep_alive = keep_alive
        self.whole = False
        self.late = False
        # All of it as it came, if it came whole and alone.
        self.data = b""
        self._connection = connection
        self._scope = scope
        # What has come of the body and was not taken yet.
        self._pieces: list[bytes] = []
        self._ahead_bytes = 0
        self._consumed = False
        self._gone = False
        self._until = NEVER
        self._overdue = False
        self._news: asyncio.Future[None] | None = None
        self._start: Message | None = None
        self._begun = False
        self._chunked = False
        self._finished = False

    # Called by the connection.

    def feed(self, data: bytes) -> None:
        self._pieces.append(data)
        self._ahead_bytes += len(data)
        if self._ahead_bytes > READ_AHEAD_BYTES:
            self._connection.pause_reading()
        self._tell()

    def complete(self) -> None:
        self.whole = True
        self._tell()

    def leave(self) -> None:
        """The client has gone."""
        self._gone = True
        self._tell()

    def overdue(self) -> None:
        """The body is late: whoever reads it learns so by a TimeoutError, once."""
        self.late = self._overdue = True
        self.keep_alive = False
        self._tell()

    async def run(self, application: Application) -> None:
        try:
            await application(self._scope, self._receive, self._send)
        except Exception:
            logger.exception("%s %s failed", self._scope["method"], self._scope["path"])
        finally:
            # They know this exchange: without them it goes at once, not when the garbage collector next looks.
            self._scope.pop("extensions", None)
        if self._finished or self._gone:
            return
        if self._begun:
            # Half an answer must not look like a whole one.
            self._connection.transport.abort()
        else:
            await self.respond(500, *_problem(HTTPStatus.INTERNAL_SERVER_ERROR))

    # Called by the application.

    async def _receive(self) -> Message:
        while not (self._pieces or self._gone or self._overdue or (self.whole and not self._consumed)):
            if not self.whole:
                self._expect_more()
            self._news = self._connection._loop.create_future()
            await self._news
        if self._gone:
            return {"type": "http.disconnect"}
        if self._overdue:
            self._overdue = False
            raise TimeoutError
        pieces, self._pieces, self._ahead_bytes = self._pieces, [], 0
        self._consumed = self.whole
        # Of a single piece this is no copy.
        return {"type": "http.request", "body": b"".join(pieces), "more_body": not self.whole}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        if self._gone or self._finished:
            return
        body, more = message.get("body", b""), message.get("more_body", False)
        head = b"" if self._begun else self._head(body, more)
        self._begun = True
        self._write(head, b"" if self._scope["method"] == "HEAD" else body, more)
        if self._connection._drained:
            await self._connection.drain()
        if not more:
            self._finished = True
            self._connection.answered(self)

    async def respond(self, status: int, lines: bytes, body: bytes) -> None:
        """The whole answer at once. `lines` are header lines, each ended, free of what would break them."""
        if held_s := self._connection.shared.holds_back_s(status, self._until):
            await asyncio.sleep(held_s)
        if self._gone or self._finished:
            return
        self._begun = True
        connection = self._connection
        head = STATUS_LINES[status] + connection.shared.date + lines + self._framing(True, body, False) + b"\r\n"
        self._write(head, b"" if self._scope["method"] == "HEAD" else body, False)
        if connection._drained:
            await connection.drain()
        self._finished = True
        connection.answered(self)

    def waits(self, until: float) -> None:
        """The client waits until then, by time.perf_counter."""
        self._until = until

    def remember(self, direct: Direct) -> None:
        """Let `direct` answer what comes under this head from now on. A direct answer is framed in one way only."""
        usual = self.keep_alive and self._scope["http_version"] == "1.1" and self._scope["method"] != "HEAD"
        if self.data and usual:
            self._connection.shared.heads.remember(self.data, direct)

    # The rest.

    def _tell(self) -> None:
        if self._news and not self._news.done():
            self._news.set_result(None)

    def _expect_more(self) -> None:
        if not self._begun and (b"expect", b"100-continue") in self._scope["headers"]:
            self._scope["headers"].remove((b"expect", b"100-continue"))
            self._connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._connection.resume_reading()

    def _head(self, body: bytes, more: bool) -> bytes:
        """Status line and headers, with the framing of the body."""
        if self._start is None:
            raise RuntimeError("http.response.body was sent before http.response.start")
        status = self._start["status"]
        parts = [STATUS_LINES[status], self._connection.shared.date]
        lines = 2 if self._connection.shared.date else 1
        framed = status in WITHOUT_BODY
        for name, value in self._start["headers"]:
            if name in FRAMING:
                self.keep_alive = self.keep_alive and value.lower() != b"close"
                continue
            framed = framed or name == b"content-length"
            parts += (name, b": ", value, b"\r\n")
            lines += 1
        head = b"".join(parts)
        if not head.count(b"\r") == head.count(b"\n") == lines:
            raise RuntimeError("a response header contains a line break")
        return head + self._framing(framed, body, more) + b"\r\n"

    def _framing(self, framed: bool, body: bytes, more: bool) -> bytes:
        framing = b""
        if not framed and not more:
            framing = b"content-length: %d\r\n" % len(body)
        elif not framed and self._scope["http_version"] == "1.1":
            self._chunked = True
            framing = b"transfer-encoding: chunked\r\n"
        elif not framed:
            # Its end is that of the connection.
            self.keep_alive = False
        if self._connection.announces_end(self):
            return framing + b"connection: close\r\n"
        return framing + (b"" if self._scope["http_version"] == "1.1" else b"connection: keep-alive\r\n")

    def _write(self, head: bytes, body: bytes, more: bool) -> None:
        transport = self._connection.transport
        if self._chunked and self._scope["method"] != "HEAD":
            body = (b"%x\r\n%s\r\n" % (len(body), body) if body else b"") + (b"" if more else b"0\r\n\r\n")
        if len(body) <= JOINED_BYTES:
            transport.write(head + body)
        else:
            transport.writelines([head, body])


class DirectExchange:
    """One request that came whole, and its answer in one piece. HTTP/1.1, not HEAD, and the connection may be kept."""

    __slots__ = ("_connection", "left", "until")

    keep_alive = whole = True

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        # Called if the client goes before it is answered.
        self.left: Callable[[], None] | None = None
        # The client waits until then, by time.perf_counter.
        self.until = NEVER

    def leave(self) -> None:
        """The client has gone."""
        left, self.left = self.left, None
        if left:
            left()

    def answer(self, status: int, lines: bytes, body: bytes) -> None:
        """The whole answer, to a client that has not left. `lines` are as for `Exchange.respond`."""
        self.left = None
        connection = self._connection
        if held_s := connection.shared.holds_back_s(status, self.until):
            connection._loop.call_later(held_s, self._write, status, lines, body)
        else:
            self._write(status, lines, body)

    def _write(self, status: int, lines: bytes, body: bytes) -> None:
        connection = self._connection
        if connection.transport.is_closing():
            # It has left while it was held back.
            return
        end = b"connection: close\r\n\r\n" if connection.announces_end(self) else b"\r\n"
        connection.transport.write(b"".join((STATUS_LINES[status], connection.shared.date, lines, end, body)))
        if connection._drained:
            # As long as the client does not read, nothing more is taken from it.
            connection._drained.add_done_callback(lambda drained: connection.answered(self))
        else:
            connection.answered(self)


def _problem(status: HTTPStatus) -> tuple[bytes, bytes]:
    """Header lines and body of an answer that no application gives: RFC 9457's, under an id of its own."""
    request_id = new_request_id().encode()
    document = b'{"type":"about:blank","title":"%b","status":%d,"detail":"%b","request_id":"%b"}' % (
        status.phrase.encode(),
        status,
        DETAILS[status],
        request_id,
    )
    return PROBLEM_LINES % (request_id, len(document)), document


def _address(given: Any) -> tuple[str, int] | None:
    """Of a TCP socket; one of another kind has none."""
    return (str(given[0]), int(given[1])) if isinstance(given, tuple) else None
