"""service.protocol: HTTP/1.1 as clients speak it, well or badly, over a real socket."""

import asyncio
import contextlib
import functools
import gc
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from service import protocol
from service.protocol import REMEMBER, Connection, Connections, Deadlines, DirectExchange, Message, Receive, Scope, Send

GET = b"GET %s HTTP/1.1\r\nHost: a\r\n\r\n"
QUICK = Deadlines(head_s=0.3, body_s=0.3, idle_s=0.3)


class Application:
    """Answers with what it was asked; its paths name what else it does."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self.timed_out = threading.Event()
        self.left = threading.Event()
        # Called past ASGI, and bodies it was called with.
        self.direct: list[bytes] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._answer(scope, receive, send)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        match scope["path"]:
            case "/refuse":
                return await respond(send, 413, b"too much")
            case "/slow":
                await asyncio.sleep(float(scope["query_string"] or b"0.05"))
            case "/crash":
                raise ValueError("on purpose")
            case "/silent":
                return None
            case "/half":
                await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"10")]})
                await send({"type": "http.response.body", "body": b"12345", "more_body": True})
                raise ValueError("on purpose")
            case "/stream":
                await send({"type": "http.response.start", "status": 200, "headers": []})
                for piece in (b"one", b"", b"two"):
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                return await send({"type": "http.response.body", "body": b"", "more_body": False})
            case "/split":
                return await respond(send, 200, b"", (b"x-evil", b"a\r\nset-cookie: b"))
            case "/large":
                return await respond(send, 200, b"x" * int(scope["query_string"]))
            case "/busy":
                if scope["query_string"]:
                    scope["extensions"][protocol.WAIT](time.perf_counter() + float(scope["query_string"]))
                await scope["extensions"][protocol.RESPOND](503, b"content-length: 0\r\n", b"")
                return None
            case "/none":
                return await respond(send, 204, b"")
            case "/direct":
                scope["extensions"][REMEMBER](self.answer)
        try:
            body = await whole(receive)
        except TimeoutError:
            self.timed_out.set()
            return await respond(send, 408, b"late")
        headers = b",".join(name + b"=" + value for name, value in scope["headers"])
        told = b"|".join(
            [scope["method"].encode(), scope["path"].encode(), scope["query_string"], headers, str(len(body)).encode()]
        )
        await respond(send, 200, told + b"|" + body[:100])
        return None

    def answer(self, exchange: DirectExchange, body: bytes) -> bool:
        """As its first bytes say: not at all, when the client has left, late, much or at once."""
        if body.startswith(b"usual"):
            return False
        self.direct.append(body)
        told = b"y" * 20_000_000 if body.startswith(b"much") else b"direct|" + body
        answer = functools.partial(exchange.answer, 200, b"content-length: %d\r\n" % len(told), told)
        if body.startswith(b"never"):
            exchange.left = self.left.set
        elif body.startswith(b"busy"):
            if body != b"busy":
                exchange.until = time.perf_counter() + float(body[4:])
            exchange.answer(503, b"content-length: 0\r\n", b"")
        elif body.startswith(b"late"):
            asyncio.get_running_loop().call_later(0.2, answer)
        else:
            answer()
        return True


async def respond(send: Send, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    length = (b"content-length", str(len(body)).encode())
    start: Message = {"type": "http.response.start", "status": status, "headers": [length, *headers]}
    await send(start)
    await send({"type": "http.response.body", "body": body})


async def whole(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        assert message["type"] == "http.request"
        body += message["body"]
        more = message["more_body"]
    return body


class Served:
    """An event loop in a thread that serves the application on a port."""

    def __init__(self, deadlines: Deadlines, **options: Any) -> None:
        self.application = Application()
        self._loop = uvloop.new_event_loop()
        self._ready = threading.Event()
        self._deadlines, self._options = deadlines, options
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(5)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def in_loop(self, call: Any) -> None:
        self._loop.call_soon_threadsafe(call)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._start())
        self._ready.set()
        self._loop.run_forever()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0.01))
        self._server.close()
        self._loop.close()

    async def _start(self) -> None:
        self.connections = Connections(self.application, self._deadlines, **self._options)
        listening = socket.create_server(("127.0.0.1", 0))
        self.port = listening.getsockname()[1]
        self._server = await self._loop.create_server(lambda: Connection(self.connections), sock=listening)
        self._tick()

    def _tick(self) -> None:
        self.connections.tick()
        self._loop.call_later(0.02, self._tick)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    server = Served(Deadlines())
    yield server
    server.close()


@pytest.fixture
def quick() -> Iterator[Served]:
    """With deadlines that a test can wait for."""
    server = Served(QUICK)
    yield server
    server.close()


def exchange(server: Served, *pieces: bytes, pause_s: float = 0.0) -> bytes:
    """Send the pieces and read until the server closes."""
    with server.connect() as client:
        for piece in pieces:
            client.sendall(piece)
            time.sleep(pause_s)
        return read_all(client)


def read_all(client: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionError):
        while piece := client.recv(65536):
            received += piece
    return received


def read_answer(client: socket.socket) -> tuple[int, dict[bytes, bytes], bytes]:
    """One answer of known length."""
    file = client.makefile("rb")
    status = int(file.readline().split()[1])
    headers = {}
    while (line := file.readline()) != b"\r\n":
        name, _, value = line.partition(b":")
        headers[name] = value.strip()
    return status, headers, file.read(int(headers.get(b"content-length", b"0")))


def closing(request: bytes) -> bytes:
    return request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)


def statuses(received: bytes) -> list[int]:
    return [int(part[:3]) for part in received.split(b"HTTP/1.1 ")[1:]]


def test_a_request_is_told_to_the_application_as_asgi_asks(served: Served) -> None:
    """Method, decoded path, raw query, lower-case headers and the body."""
    request = b"POST /a%20b?x=%20 HTTP/1.1\r\nHost: h\r\nX-Y: Z\r\nContent-Length: 3\r\n\r\nabc"
    received = exchange(served, closing(request))
    assert received.endswith(b"POST|/a b|x=%20|host=h,x-y=Z,content-length=3,connection=close|3|abc")


def test_a_connection_is_kept_and_dated(served: Served) -> None:
    """Several requests go over one connection; each answer has a date and none says it is the last."""
    with served.connect() as client:
        for path in (b"/1", b"/2", b"/3"):
            client.sendall(GET % path)
            status, headers, body = read_answer(client)
            assert (status, body.split(b"|")[1]) == (200, path)
            assert b"date" in headers
            assert b"connection" not in headers


def test_pipelined_requests_are_answered_in_order(served: Served) -> None:
    """A slow one first does not let the quick ones behind it overtake."""
    pipeline = GET % b"/slow" + b"".join(GET % b"/%d" % i for i in range(50)) + closing(GET % b"/last")
    received = exchange(served, pipeline)
    assert statuses(received) == [200] * 52
    paths = [part.split(b"|")[1] for part in received.split(b"GET|")[1:] for part in [b"GET|" + part]]
    assert paths == [b"/slow", *(b"/%d" % i for i in range(50)), b"/last"]


@pytest.mark.slow
@given(st.data())
@settings(deadline=None, max_examples=40)
def test_however_a_request_is_cut_it_is_the_same_request(data: st.DataObject) -> None:
    """Segments of any size, chunked or not, give the same answers."""
    plain = b"POST /p?q HTTP/1.1\r\nHost: h\r\nContent-Length: 11\r\n\r\nhello world"
    chunks = b"5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nT: r\r\n\r\n"
    chunked = b"POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks
    stream = plain + chunked + GET % b"/g" + closing(GET % b"/end")
    cuts = sorted(data.draw(st.sets(st.integers(1, len(stream) - 1), max_size=8)))
    pieces = [stream[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    received = exchange(SHARED[0], *pieces)
    assert statuses(received) == [200] * 4
    assert received.count(b"|11|hello world") == 2
    assert b"t=r" not in received


SHARED: list[Served] = []


@pytest.fixture(autouse=True, scope="module")
def shared(served: Served) -> None:
    """For hypothesis, whose tests take no fixtures of a function's scope."""
    SHARED.append(served)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),  # TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",  # no Host
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        b"GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
    ],
)
def test_what_is_not_http_gets_400_and_the_door(served: Served, request_bytes: bytes) -> None:
    """One problem document, then the end of the connection."""
    received = exchange(served, request_bytes)
    assert statuses(received) == [400]
    assert b"application/problem+json" in received
    assert b"connection: close" in received


def test_a_refusal_is_a_problem_document_under_an_id_of_its_own(served: Served) -> None:
    """As the application's are: of what is no HTTP, and of what the application fails by."""
    ids = set()
    for request in (b"garbage\r\n\r\n", GET % (b"/" + b"y" * 400_000), closing(GET % b"/crash")):
        with served.connect() as client:
            client.sendall(request)
            status, headers, body = read_answer(client)
        document = json.loads(body)
        assert headers[b"content-type"] == b"application/problem+json"
        assert document["status"] == status
        assert document["request_id"].encode() == headers[b"x-request-id"]
        assert {"type", "title", "detail"} < document.keys()
        ids.add(document["request_id"])
    assert len(ids) == 3


def test_garbage_after_a_request_does_not_cost_its_answer(served: Served) -> None:
    """What was asked before is answered first."""
    assert statuses(exchange(served, GET % b"/slow" + b"garbage\r\n\r\n")) == [200, 400]


def test_nothing_behind_a_smuggled_request_is_run(served: Served) -> None:
    """A request hidden behind an ambiguous length is never seen."""
    hidden = GET % b"/hidden"
    ambiguous = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: %d\r\n\r\n" % (
        5 + len(hidden)
    )
    assert b"/hidden" not in exchange(served, ambiguous + b"0\r\n\r\n" + hidden)


def test_an_oversized_head_is_refused(served: Served) -> None:
    """Also where a header never ends; memory stays bounded."""
    assert statuses(exchange(served, b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 400_000)) == [431]
    many = b"".join(b"X-%d: y\r\n" % i for i in range(100_000))
    assert statuses(exchange(served, b"GET / HTTP/1.1\r\nHost: a\r\n" + many)) == [431]


def test_an_oversized_head_is_refused_though_it_comes_at_once(served: Served) -> None:
    """Whole in the first piece that is read, so that nothing is left of it when its length is looked at."""
    head = b"GET / HTTP/1.1\r\nHost: a\r\nX: %s\r\n\r\n"
    for _ in range(5):
        assert statuses(exchange(served, closing(head % (b"y" * 70_000)))) == [431]
    assert statuses(exchange(served, closing(head % (b"y" * 60_000)))) == [200]


def test_a_large_body_in_the_same_segment_is_no_large_head(served: Served) -> None:
    """Only what belongs to the head counts as head."""
    body = b"z" * 300_000
    request = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    assert b"|300000|" in exchange(served, request + body)


def test_a_refusal_can_be_read_by_a_client_that_is_still_sending(served: Served) -> None:
    """It is sent at once, and what else comes is thrown away instead of being answered by a reset."""
    with served.connect() as client:
        client.sendall(b"POST /refuse HTTP/1.1\r\nHost: a\r\nContent-Length: 20000000\r\n\r\n")
        for _ in range(20):
            client.sendall(bytes(1_000_000))
        received = read_all(client)
    assert statuses(received) == [413]
    assert b"connection: close" in received


def test_expect_100_continue(served: Served) -> None:
    """The client is asked for its body when it is wanted, and not when it is refused."""
    head = b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
    with served.connect() as client:
        client.sendall(head % b"/")
        assert client.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"abc")
        assert statuses(read_all(client)) == [200]
    assert statuses(exchange(served, head % b"/refuse")) == [413]


def test_http_1_0(served: Served) -> None:
    """Closes after an answer, unless the client asks to be kept and is told so; needs no Host."""
    assert statuses(exchange(served, b"GET /a HTTP/1.0\r\n\r\n")) == [200]
    with served.connect() as client:
        client.sendall(b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        _, headers, _ = read_answer(client)
        assert headers[b"connection"] == b"keep-alive"
        client.sendall(b"GET /b HTTP/1.0\r\n\r\n")
        assert b"/b" in read_all(client)
    assert exchange(served, b"GET /stream HTTP/1.0\r\n\r\n").endswith(b"\r\n\r\nonetwo")


def test_head_and_204_have_no_body(served: Served) -> None:
    """The length of the body that a GET would have is told; the next answer begins where the head ends."""
    received = exchange(served, b"HEAD /a HTTP/1.1\r\nHost: a\r\n\r\n" + GET % b"/none" + closing(GET % b"/b"))
    first, second, third = received.split(b"HTTP/1.1 ")[1:]
    assert int(first.lower().split(b"content-length: ")[1].split(b"\r\n")[0]) > 0
    assert first.endswith(b"\r\n\r\n")
    assert second.endswith(b"\r\n\r\n")
    assert b"/b" in third


def test_an_answer_of_unknown_length_is_chunked(served: Served) -> None:
    """Empty pieces do not end it early."""
    received = exchange(served, closing(GET % b"/stream"))
    assert b"transfer-encoding: chunked" in received
    assert received.endswith(b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")


@pytest.mark.slow
def test_a_large_answer_waits_for_its_reader(served: Served) -> None:
    """All of it arrives, however slowly it is read."""
    with served.connect() as client:
        client.sendall(closing(GET % b"/large?30000000"))
        time.sleep(0.2)
        received = read_all(client)
    assert len(received.partition(b"\r\n\r\n")[2]) == 30_000_000


def test_a_failing_application_gives_500_and_half_an_answer_no_whole_one(served: Served) -> None:
    """The connection lives on after a 500; an answer cut short ends without its last byte."""
    with served.connect() as client:
        for path in (b"/crash", b"/silent", b"/split"):
            client.sendall(GET % path)
            assert read_answer(client)[0] == 500
        client.sendall(GET % b"/fine")
        assert read_answer(client)[0] == 200
    assert exchange(served, GET % b"/half").endswith(b"12345")


class Still(Served):
    """Looks at its connections once and never again."""

    def _tick(self) -> None:
        self.connections.tick()


@pytest.mark.slow
@pytest.mark.parametrize("path", [b"/busy", b"/direct"])
def test_a_flood_is_refused_at_leisure(path: bytes) -> None:
    """Of many refusals in a moment the last ones are held back; nothing else is, and all are sent."""
    server = Still(Deadlines())
    request = b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbusy" % path
    with server.connect() as flooding, server.connect() as leaving, server.connect() as other:
        if path == b"/direct":
            flooding.sendall(request)
            assert read_answer(flooding)[0] == 200
        before = time.monotonic()
        for _ in range(protocol.FLOOD):
            flooding.sendall(request)
            assert read_answer(flooding)[0] == 503
        flood = time.monotonic()
        leaving.sendall(request)
        flooding.sendall(request)
        time.sleep(0.05)
        leaving.close()
        other.sendall(GET % b"/fine")
        assert read_answer(other)[0] == 200
        undisturbed = time.monotonic()
        assert read_answer(flooding)[0] == 503
        assert time.monotonic() - flood >= protocol.HELD_S
        assert undisturbed - before < protocol.HELD_S
        flooding.sendall(GET % b"/fine")
        assert read_answer(flooding)[0] == 200
    server.close()


@pytest.mark.parametrize("path", [b"/busy?0.1", b"/direct"])
def test_a_flood_is_refused_before_it_waits_no_longer(path: bytes) -> None:
    """Nobody who has said how long an answer is of use is told later."""
    server = Still(Deadlines())
    body = b"busy0.1"
    request = b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (path, len(body), body)
    with server.connect() as flooding:
        if path == b"/direct":
            flooding.sendall(request)
            assert read_answer(flooding)[0] == 200
        for _ in range(protocol.FLOOD):
            flooding.sendall(request)
            assert read_answer(flooding)[0] == 503
        before = time.monotonic()
        flooding.sendall(request)
        assert read_answer(flooding)[0] == 503
        assert 0.09 <= time.monotonic() - before < protocol.HELD_S
    server.close()


def test_upgrades_are_declined_by_answering(served: Served) -> None:
    """Whoever would speak another protocol gets an answer in this one, the last on the connection."""
    upgrade = b"GET /u HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    received = exchange(served, upgrade)
    assert statuses(received) == [200]
    assert b"connection: close" in received


def test_absolute_and_authority_targets(served: Served) -> None:
    """A proxy's form of a request means the same path."""
    assert b"GET|/x|y" in exchange(served, closing(GET % b"http://h:1/x?y"))
    assert b"GET|/|" in exchange(served, closing(GET % b"http://h"))


def test_the_task_of_a_client_that_left_is_cancelled(served: Served) -> None:
    """Nobody waits for its answer."""
    with served.connect() as client:
        client.sendall(GET % b"/slow?30")
        time.sleep(0.1)
    assert served.application.cancelled.wait(5)


def test_a_dribbled_head_is_cut(quick: Served) -> None:
    """A byte now and then does not keep it alive."""
    started = time.monotonic()
    with quick.connect() as client:
        received = b""
        with contextlib.suppress(ConnectionError):
            for byte in b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 1000:
                client.sendall(bytes([byte]))
                time.sleep(0.02)
                client.settimeout(0.001)
                with contextlib.suppress(TimeoutError):
                    if piece := client.recv(1000):
                        received += piece
                    else:
                        break
                client.settimeout(10)
    assert statuses(received) == [408]
    assert time.monotonic() - started < 2


def test_a_late_body_is_the_applications_to_refuse(quick: Served) -> None:
    """It is told by a TimeoutError and answers; the connection ends."""
    with quick.connect() as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc")
        received = b""
        while b"late" not in received:
            received += client.recv(1000)
    assert statuses(received) == [408]
    assert quick.application.timed_out.is_set()


def test_silence_is_ended_but_not_a_slow_answer(quick: Served) -> None:
    """The deadlines are the client's; while the application works, nothing is overdue."""
    with quick.connect() as client:
        client.sendall(GET % b"/slow?0.8")
        assert read_answer(client)[0] == 200
        started = time.monotonic()
        assert client.recv(1) == b""
        assert 0.1 < time.monotonic() - started < 2


def test_a_reader_that_stands_still_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it was to be sent does not stay in memory for ever."""
    monkeypatch.setattr(protocol, "STUCK_WRITE_S", 0.3)
    server = Served(QUICK)
    try:
        with server.connect() as client:
            client.sendall(GET % b"/large?50000000")
            deadline = time.monotonic() + 5
            while server.connections.open and time.monotonic() < deadline:
                time.sleep(0.05)
            assert not server.connections.open
    finally:
        server.close()


@pytest.mark.slow
def test_shutting_down_answers_what_was_asked(served: Served) -> None:
    """A running request is answered as the last; an idle connection is closed."""
    with served.connect() as busy, served.connect() as idle:
        idle.sendall(GET % b"/a")
        read_answer(idle)
        busy.sendall(GET % b"/slow?0.3" + GET % b"/next")
        time.sleep(0.1)
        served.in_loop(served.connections.end)
        assert idle.recv(1) == b""
        received = read_all(busy)
    served.connections.ending = False
    assert statuses(received) == [200, 200]
    assert received.count(b"connection: close") == 1


def direct(body: bytes, head: bytes = b"POST /direct HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n") -> bytes:
    return head % len(body) + body


@pytest.fixture
def offered() -> Iterator[Served]:
    """A server whose application has offered to answer directly what comes like `direct`."""
    server = Served(Deadlines())
    with server.connect() as client:
        client.sendall(direct(b"first"))
        assert read_answer(client)[2].startswith(b"POST|/direct|")
    assert server.application.direct == []
    yield server
    server.close()


def test_what_comes_whole_under_a_known_head_is_answered_directly(offered: Served) -> None:
    """On any connection, whatever its length, and kept; with the date and the framing of any other answer."""
    for body in (b"", b"second", b"z" * 50_000):
        with offered.connect() as client:
            for _ in range(3):
                client.sendall(direct(body))
                status, headers, told = read_answer(client)
                assert (status, told) == (200, b"direct|" + body)
                assert b"date" in headers
                assert b"connection" not in headers
    assert len(offered.application.direct) == 9


@pytest.mark.slow
@given(st.lists(st.sampled_from([b"a", b"late", b"usual", b"bcd" * 1000]), min_size=1, max_size=4), st.data())
@settings(deadline=None, max_examples=25)
def test_direct_and_usual_answers_keep_their_order(bodies: list[bytes], data: st.DataObject) -> None:
    """However requests are cut and pipelined, and whoever answers them."""
    exchange(SHARED[0], closing(direct(b"first")))
    with SHARED[0].connect() as client:
        client.sendall(direct(b"first"))
        read_answer(client)
        stream = b"".join(direct(body) for body in bodies) + closing(GET % b"/end")
        cuts = sorted(data.draw(st.sets(st.integers(1, len(stream) - 1), max_size=4)))
        for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            client.sendall(stream[start:stop])
            time.sleep(0.002)
        received = read_all(client)
    assert statuses(received) == [200] * (len(bodies) + 1)
    at = 0
    for body in bodies:
        at = received.index(b"|" + body[:100], at) + 1
    assert b"/end" in received[at:]


@pytest.mark.parametrize(
    "head",
    [
        b"POST /direct HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\nConnection: close\r\n\r\n",
        b"POST /direct HTTP/1.0\r\nHost: a\r\nContent-Length: %d\r\nConnection: close\r\n\r\n",
        b"HEAD /direct HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n",
        b"POST /direct HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
    ],
)
def test_what_needs_another_framing_is_answered_as_usual(offered: Served, head: bytes) -> None:
    """An answer that ends the connection, has no body or is in an older version."""
    for _ in range(2):
        with offered.connect() as client:
            client.sendall(direct(b"abc", head))
            client.shutdown(socket.SHUT_WR)
            assert statuses(read_all(client)) == [200]
    assert offered.application.direct == []


def test_who_waits_for_a_direct_answer_and_leaves_is_forgotten(offered: Served) -> None:
    """The application learns of it."""
    with offered.connect() as client:
        client.sendall(direct(b"never"))
        time.sleep(0.1)
        assert not offered.application.left.is_set()
    assert offered.application.left.wait(5)


@pytest.mark.slow
def test_a_direct_answer_waits_for_its_reader(offered: Served) -> None:
    """All of it arrives, and only then is the next request taken."""
    with offered.connect() as client:
        client.sendall(direct(b"much"))
        time.sleep(0.1)
        client.sendall(direct(b"next"))
        time.sleep(0.1)
        assert offered.application.direct == [b"much"]
        client.sendall(closing(GET % b"/end"))
        received = read_all(client)
    assert statuses(received) == [200] * 3
    assert received.count(b"y") == 20_000_000
    assert offered.application.direct == [b"much"]


def test_garbage_behind_a_direct_request_does_not_cost_its_answer(offered: Served) -> None:
    """What was asked before is answered first."""
    with offered.connect() as client:
        client.sendall(direct(b"late"))
        time.sleep(0.05)
        client.sendall(b"garbage\r\n\r\n")
        assert statuses(read_all(client)) == [200, 400]


def test_shutting_down_gives_direct_answers(offered: Served) -> None:
    """As the last on the connection."""
    with offered.connect() as client:
        client.sendall(direct(b"late"))
        time.sleep(0.05)
        offered.in_loop(offered.connections.end)
        received = read_all(client)
    offered.connections.ending = False
    assert received.endswith(b"connection: close\r\n\r\ndirect|late")


def test_a_request_that_is_over_leaves_nothing_in_memory(served: Served) -> None:
    """Its body may be large; the garbage collector, which would find it some day, is not needed."""

    def exchanges() -> int:
        return sum(type(found) in (protocol.Exchange, DirectExchange) for found in gc.get_objects())

    gc.collect()
    before = exchanges()
    gc.disable()
    try:
        for request in (GET % b"/a", direct(b"first"), direct(b"second"), GET % b"/slow"):
            assert exchange(served, request + closing(GET % b"/end")).count(b"HTTP/1.1") == 2
        time.sleep(0.1)
        assert exchanges() == before
    finally:
        gc.enable()


SHARDS = (
    b"GET POST / HTTP/1.1 \r\n Host: a |\r\n\r\n |: |\x00 |Content-Length: 5 |Transfer-Encoding: chunked |0\r\n\r\n "
    b"|abc |Connection: close |GET / HTTP/1.1\r\nHost: a\r\n"
).split(b"|")


@given(st.lists(st.sampled_from(SHARDS), max_size=25).map(b"".join))
@settings(deadline=None, max_examples=150)
def test_nothing_hostile_breaks_the_server(garbage: bytes) -> None:
    """Whatever comes, the next client is answered."""
    with SHARED[0].connect() as client:
        client.sendall(garbage)
    assert statuses(exchange(SHARED[0], closing(GET % b"/fine"))) == [200]
