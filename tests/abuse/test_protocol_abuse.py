"""HTTP as it should not be spoken, to the whole service: answered once, under an id, and nothing is smuggled."""

import json
import re
import socket

import pytest

from tests.abuse.soak.offences import HOSTILE_IDS, INTERNALS
from tests.conftest import Server, fixtures
from tests.test_protocol import read_all, read_answer

IMAGE = fixtures("digits")[0][0]
PATH = b"/v1/models/digits/classify"
POST = b"POST " + PATH + b" HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\n"
SOUND = POST + b"Content-Length: %d\r\n\r\n" % len(IMAGE) + IMAGE
GET = b"GET %b HTTP/1.1\r\nHost: a\r\n"
# What a proxy that reads otherwise would take for a request of its own.
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"

MALFORMED = {
    "length and chunks": POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "chunks and length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "two lengths": POST + b"Content-Length: 0\r\nContent-Length: 40\r\n\r\n" + SMUGGLED,
    "two lengths in one": POST + b"Content-Length: 0, 40\r\n\r\n" + SMUGGLED,
    "a signed length": POST + b"Content-Length: +40\r\n\r\n" + SMUGGLED,
    "a length below zero": POST + b"Content-Length: -1\r\n\r\n" + SMUGGLED,
    "a length in hexadecimal": POST + b"Content-Length: 0x10\r\n\r\n" + SMUGGLED,
    "a length past all numbers": POST + b"Content-Length: 99999999999999999999999\r\n\r\n" + SMUGGLED,
    "chunks within something else": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "chunks by another name": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "a chunk of no size": CHUNKED + b"zz\r\nabc\r\n0\r\n\r\n" + SMUGGLED,
    "a chunk below zero": CHUNKED + b"-1\r\nabc\r\n0\r\n\r\n" + SMUGGLED,
    "a chunk longer than it says": CHUNKED + b"3\r\nabcdef\r\n0\r\n\r\n" + SMUGGLED,
    "a chunk past all numbers": CHUNKED + b"fffffffffffffffff\r\nabc\r\n0\r\n\r\n" + SMUGGLED,
    "a folded header": GET % b"/livez" + b"X: a\r\n b\r\n\r\n",
    "a bare line feed in a header": GET % b"/livez" + b"X: a\nTransfer-Encoding: chunked\r\n\r\n",
    "a bare carriage return": GET % b"/livez" + b"X: a\rY: b\r\n\r\n",
    "a NUL in a header": GET % b"/livez" + b"X: a\0b\r\n\r\n",
    "a NUL in a name": GET % b"/livez" + b"X\0: a\r\n\r\n",
    "a NUL in the path": GET % b"/li\0vez" + b"\r\n",
    "a blank before a colon": POST + b"Content-Length : 4\r\n\r\nabcd",
    "a blank before all headers": b"GET /livez HTTP/1.1\r\n Host: a\r\n\r\n",
    "no host": b"GET /livez HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /livez HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "another protocol": b"GET /livez HTTP/3.0\r\nHost: a\r\n\r\n",
    "no protocol": b"GET /livez\r\n\r\n",
    "HTTP/0.9": b"GET /livez HTTP/0.9\r\nHost: a\r\n\r\n",
    "HTTP/2 in the form of HTTP/1": b"GET /livez HTTP/2.0\r\nHost: a\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64) + b"\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=10)


def sent(server: Server, request: bytes) -> list[tuple[int, bytes, bytes]]:
    """The answers to bytes after which the client says that it has no more: status, head and body of each."""
    with connect(server) as client:
        client.sendall(request)
        client.shutdown(socket.SHUT_WR)
        received = read_all(client)
    found = []
    while received:
        head, _, received = received.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        size = int(length[1]) if length else 0
        found.append((int(head.split()[1]), head, received[:size]))
        received = received[size:]
    return found


def one(server: Server, request: bytes) -> tuple[int, bytes, bytes]:
    """The only answer, as the server closes or the client asks it to."""
    with connect(server) as client:
        client.sendall(request)
        status, headers, body = read_answer(client)
        return status, b"\r\n".join(b"%b: %b" % item for item in headers.items()), body


def assert_sound_problem(status: int, head: bytes, body: bytes) -> None:
    """A document under the id that the head has, which tells of no internals."""
    document = json.loads(body)
    assert document["status"] == status
    request_id = re.search(rb"x-request-id: (\S+)", head)
    assert request_id is not None
    assert document["request_id"].encode() == request_id[1]
    assert not any(trace in (head + body).lower() for trace in INTERNALS)


@pytest.mark.parametrize("request_bytes", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_requests_are_refused_once(server: Server, request_bytes: bytes) -> None:
    """400 and the end: nothing behind it is taken for a request, and the service answers the next client."""
    with connect(server) as client:
        client.sendall(request_bytes)
        received = read_all(client)
    assert received.count(b"HTTP/1.1 ") == 1
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"connection: close" in head
    assert b"/smuggled" not in body
    assert_sound_problem(400, head, body)
    assert one(server, SOUND)[0] == 200


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (GET % b"/nothing" + b"\r\n", 404),
        (GET % PATH + b"\r\n", 405),
        (b"DELETE /v1/models HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 404),
        (b"CONNECT other:443 HTTP/1.1\r\nHost: other:443\r\n\r\n", 404),
        (POST + b"Content-Length: 99999999\r\n\r\n", 413),
        (GET % b"/livez" + b"X: " + b"y" * 300_000 + b"\r\n\r\n", 431),
        (GET % b"/livez" + b"".join(b"X%d: y\r\n" % i for i in range(30_000)) + b"\r\n", 431),
        (GET % (b"/" + b"y" * 300_000) + b"\r\n", 431),
        (POST + b"Content-Length: 3\r\n\r\nabc", 415),
        (POST.replace(PATH, PATH + b"?top_k=%00") + b"Content-Length: 3\r\n\r\nabc", 422),
        (GET % b"/../../etc/passwd" + b"\r\n", 404),
        (GET % b"/%2e%2e/%2e%2e/etc/passwd" + b"\r\n", 404),
        (GET % b"/v1/models/%ff%fe/classify" + b"\r\n", 404),
    ],
)
def test_every_refusal_has_an_id(server: Server, request_bytes: bytes, status: int) -> None:
    """Whoever gives it."""
    given, head, body = one(server, request_bytes)
    assert given == status
    assert_sound_problem(given, head, body)


@pytest.mark.parametrize("hostile", HOSTILE_IDS)
@pytest.mark.parametrize("rest", [b"GET /nothing HTTP/1.1\r\nHost: a\r\n", SOUND.partition(b"\r\n\r\n")[0] + b"\r\n"])
def test_hostile_ids_are_never_reflected(server: Server, hostile: bytes, rest: bytes) -> None:
    """Neither in a refusal nor in an answer, again and again."""
    body = IMAGE if rest.startswith(b"POST") else b""
    for _ in range(3):
        _, head, answered = one(server, rest + b"X-Request-Id: " + hostile + b"\r\n\r\n" + body)
        assert hostile not in head + answered
        assert re.search(rb"x-request-id: [0-9a-f]{32}\b", head)


def test_http_1_0_is_answered_and_closed(server: Server) -> None:
    """Without a host, and with a length rather than chunks."""
    ((status, head, body),) = sent(server, b"GET /livez HTTP/1.0\r\n\r\n")
    assert status == 200
    assert b"transfer-encoding" not in head
    assert json.loads(body) == {"status": "alive"}


def test_a_proxys_target_means_its_path(server: Server) -> None:
    """Whatever host it names."""
    assert one(server, SOUND.replace(PATH, b"http://elsewhere:1" + PATH))[0] == 200
    assert one(server, GET % b"http://elsewhere/nothing" + b"\r\n")[0] == 404


def test_pipelined_good_and_bad_are_answered_in_order(server: Server) -> None:
    """Up to what is no request, behind which nothing is."""
    lines = SOUND + GET % b"/nothing" + b"\r\n" + SOUND + b"garbage\r\n\r\n" + SOUND
    with connect(server) as client:
        client.sendall(lines)
        received = read_all(client)
    assert re.findall(rb"HTTP/1.1 (\d+)", received) == [b"200", b"404", b"200", b"400"]


def test_expecting_to_be_told_to_go_on(server: Server) -> None:
    """100 before a body that is wanted; for one that is not, the refusal alone."""
    with connect(server) as client:
        head, _, body = SOUND.partition(b"\r\n\r\n")
        client.sendall(head + b"\r\nExpect: 100-continue\r\n\r\n")
        assert client.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(body)
        assert read_answer(client)[0] == 200
    with connect(server) as client:
        client.sendall(POST + b"Content-Length: 99999999\r\nExpect: 100-continue\r\n\r\n")
        assert read_answer(client)[0] == 413


@pytest.mark.parametrize("protocol", [b"websocket", b"h2c", b"TLS/1.0"])
def test_no_other_protocol_is_spoken(server: Server, protocol: bytes) -> None:
    """An upgrade is answered in this one, once, and what follows is not looked at."""
    upgrade = b"Connection: Upgrade\r\nUpgrade: %b\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n" % protocol
    with connect(server) as client:
        client.sendall(GET % b"/livez" + upgrade + SMUGGLED)
        received = read_all(client)
    assert re.findall(rb"HTTP/1.1 (\d+)", received) == [b"200"]
