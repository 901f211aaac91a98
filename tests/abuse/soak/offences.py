"""Bad requests, and what each must be answered: a 4xx problem document, or nothing where the client is at fault."""

import random
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import orjson

from tests.abuse.soak.questions import RIGHT, WRONG, Asked, Library, Verdict, classify, head
from tests.abuse.wire import Answer

# Traces of the program that no client is to see.
INTERNALS = (b"traceback", b'file "', b".py", b"exception", b"/site-packages")
HOSTILE_IDS = (
    b"<script>alert(1)</script>",
    b"x" * 4000,
    b"${jndi:ldap://x}",
    b"a b",
    b"'; DROP TABLE requests; --",
    b"\xff\xfe\xfd",
)


def png_of(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG file whose header says so; `data` is what it has of pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def gif_of(width: int, height: int) -> bytes:
    frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x4c\x01\0"
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0, 0, 0) + frame + b";"


@dataclass(frozen=True)
class Leaving:
    """What is sent before the client goes, without waiting for an answer."""

    kind: str
    data: bytes
    reset: bool


def refused(*statuses: int, never: bytes = b"") -> Callable[[Answer], Verdict]:
    """A judge: one of these statuses, as a problem document under the answer's own id, that tells of no internals.

    `never` is not to be found in it.
    """

    def judge(answer: Answer) -> Verdict:
        text = answer.head + answer.body
        if answer.status not in statuses or (never and never in text):
            return WRONG
        if answer.status in (200, 304):
            return RIGHT
        if any(trace in text.lower() for trace in INTERNALS):
            return WRONG
        document = orjson.loads(answer.body)
        told = document["status"] == answer.status and document["request_id"].encode() == answer.header(b"x-request-id")
        return RIGHT if told and (answer.status != 503 or answer.header(b"retry-after")) else WRONG

    return judge


class Offences:
    """Asks what cannot be answered."""

    def __init__(self, libraries: Sequence[Library], chance: random.Random) -> None:
        self._libraries = libraries
        self._chance = chance
        self._kinds = [
            ("truncated image", self._truncated),
            ("no image", self._no_image),
            ("bomb", self._bomb),
            ("body over the limit, by its header", self._over_limit),
            ("unknown path", self._unknown_path),
            ("wrong method", self._wrong_method),
            ("malformed head", self._malformed),
            ("hostile request id", self._hostile_id),
            ("compressed body", self._compressed),
            ("timeout of 1 ms", self._hurried),
            ("bad parameter", self._bad_parameter),
            ("malformed form", self._malformed_form),
            ("malformed tensor", self._malformed_tensor),
        ]

    def next(self) -> Asked:
        kind, make = self._chance.choice(self._kinds)
        data, judge = make()
        return Asked(kind, data, judge)

    def each(self) -> list[Asked]:
        """One of each kind."""
        return [Asked(kind, *make()) for kind, make in self._kinds]

    def leaving(self) -> Leaving:
        """A client that goes in the midst of its body, or before its answer."""
        request, chance = self._post(self._body()), self._chance
        if chance.random() < 0.5:
            return Leaving("left half-way", request[: chance.randrange(1, len(request))], chance.random() < 0.5)
        return Leaving("left before the answer", request, chance.random() < 0.5)

    def _body(self) -> bytes:
        return self._chance.choice(self._chance.choice(self._libraries).items).body

    def _path(self) -> str:
        return classify(self._chance.choice(self._libraries).model)

    def _post(self, body: bytes, *headers: bytes, path: str = "") -> bytes:
        return head(path or self._path(), (b"Content-Type: image/png", *headers), body) + body

    def _truncated(self) -> tuple[bytes, Callable[[Answer], Verdict]]:
        body = self._chance.choice(self._libraries[0].items).body
        # A BMP or JPEG cut off late may be answered 400 only, one cut off in its signature is no image.
        return self._post(body[: self._chance.randrange(1, len(body) // 2)]), refused(400, 415)

    def _no_image(self) -> tuple[bytes, Callable[[Answer], Verdict]]:
        body = self._chance.choice(
            (self._chance.randbytes(1000), b"<svg/>", b"%PDF-1.7", b"http://localhost/x.png", b"")
        )
        return self._post(body), refused(400, 415)

    def _bomb(self) -> tuple[bytes, Callable[[Answer], Verdict]]:
        side = self._chance.choice((20_000, 50_000))
        return self._post(self._chance.choice((png_of(side, side, bytes(1000)), gif_of(side, side)))), refused(413)

    def _over_limit(self) -> tuple[bytes, Callable[[Answer], Verdict]]:
        length = self._chance.choice((b"10485761", b"99999999999", b"9223372036854775807"))
        text = b"POST %b HTTP/1.1\r\nHost: soak\r\nContent-Type: image/png\r\nContent-Length: %b\r\n\r\n"
        return text % (self._path().encode(), length), refused(413)

    def _unknown_path(self) -> tuple[bytes, Callable[[Answer], Verdict]]:
        path = self._chance.choice(("/v1/models/%08x/classify", "/%08x", "/v1/%08x/../..", "/wp-admin/%08x.php"))
        return self._post(self._body(), path=path % self._chance.getrandbits(32)), refused(404)

    def _wrong_method(self) -> tuple[bytes, Callable[[Answer], Verdict]]:
        method = self._chance.choice((b"GET", b"DELETE", b"PUT", b"OPTIONS", b"TRACE"))
        return b"%b %b HTTP/1.1\r\nHost: soak\r\n\r\n" % (method, self._path().encode()), refused(405)

    def _malformed(self) -> tuple[bytes, Callable[[Answer], Verdict]]:
        post = b"POST %b HTTP/1.1\r\nHost: soak\r\n" % self._path().encode()
        return self._chance.choice(
            [
                (b"garbage\r\n\r\n", refused(400)),
                (b"GET / HTTP/1.1\r\n\r\n", refused(400)),
                (post + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", refused(400)),
                (post + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", refused(400)),
                (post + b"X: a\0b\r\n\r\n", refused(400)),
                (post + b"Content-Length: -1\r\n\r\n", refused(400)),
                (post + b"X: " + b"y" * 400_000 + b"\r\n\r\n", refused(431)),
                (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + self._chance.randbytes(200), refused(400)),
            ]
        )

    def _hostile_id(self) -> tuple[bytes, Callable[[Answer], Verdict]]:
        given = self._chance.choice(HOSTILE_IDS)
        return self._post(self._body(), b"X-Request-Id: " + given), refused(200, never=given)

    def _compressed(self) -> tuple[bytes, Callable[[Answer], Verdict]]:
        encoding = self._chance.choice((b"gzip", b"deflate", b"br", b"zstd"))
        return self._post(zlib.compress(self._body()), b"Content-Encoding: " + encoding), refused(415)

    def _hurried(self) -> tuple[bytes, Callable[[Answer], Verdict]]:
        return self._post(self._body(), b"X-Request-Timeout-Ms: 1"), refused(200, 503)

    def _bad_parameter(self) -> tuple[bytes, Callable[[Answer], Verdict]]:
        query, status = self._chance.choice((("top_k=0", 422), ("top_k=%00", 422), ("a=b", 422), ("logits=2", 422)))
        return self._post(self._body(), path=f"{self._path()}?{query}"), refused(status)

    def _malformed_form(self) -> tuple[bytes, Callable[[Answer], Verdict]]:
        type_ = self._chance.choice((b"multipart/form-data", b"multipart/form-data; boundary=elsewhere"))
        return head(self._path(), [b"Content-Type: " + type_], b"--x\r\n\r\n") + b"--x\r\n\r\n", refused(400)

    def _malformed_tensor(self) -> tuple[bytes, Callable[[Answer], Verdict]]:
        body = self._chance.choice((b"\x93NUMPY", b"\x93NUMPY\x01\x00\xff\xff{", b"\x93NUMPY\x01\x00\x05\x00None\n"))
        return head(self._path(), [b"Content-Type: application/x-npy"], body) + body, refused(400, 415)
