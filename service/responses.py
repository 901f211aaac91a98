"""What a client is sent: JSON documents, with or without an entity tag, and RFC 9457 problem documents."""

import hashlib
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import orjson

from service.errors import InternalError, Problem
from service.protocol import Send

# (status, header lines, body)
Respond = Callable[[int, bytes, bytes], Awaitable[None]]

logger = logging.getLogger("trueodds")

# For a browser that shows it: a document that loads nothing, runs nothing and stands in nobody's frame.
INERT = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
JSON, PROBLEM_JSON = b"application/json", b"application/problem+json"
# RFC 9110, section 8.8.3: what is compared of an entity tag; a W/ before it does not count.
ENTITY_TAG = re.compile(rb'"[!#-~\x80-\xff]*+"')


class Response(NamedTuple):
    """A response whose body is whole."""

    status: int
    content_type: bytes
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()
    etag: bytes = b""

    @classmethod
    def json(cls, document: Any) -> "Response":
        return cls(200, JSON, encode(document), (INERT,))

    @classmethod
    def cacheable_json(cls, document: Any) -> "Response":
        """A document that stays the same for long: made once, kept, and for each request `unless_known`."""
        body = encode(document)
        etag = b'"%b"' % hashlib.sha256(body).hexdigest()[:32].encode()
        # no-cache: keep it, and ask each time whether it still holds.
        return cls(200, JSON, body, (INERT, (b"cache-control", b"no-cache"), (b"etag", etag)), etag)

    @classmethod
    def problem(cls, problem: Problem, request_id: str) -> "Response":
        return cls(problem.status, PROBLEM_JSON, encode(problem.document(request_id)), (INERT, *problem.headers))

    @classmethod
    def failure(cls, error: Exception, request_id: str) -> "Response":
        """What went wrong with a request: a problem is told as it is, anything else is for the log."""
        if not isinstance(error, Problem):
            logger.error("request %s failed", request_id, exc_info=error)
            error = InternalError("The service failed to answer; its log has the reason under this request_id.")
        return cls.problem(error, request_id)

    def unless_known(self, if_none_match: bytes) -> "Response":
        """Itself, or 304 without a body for a client that has it: its If-None-Match, empty for none, names the tag."""
        if self.etag and not_modified(if_none_match, self.etag):
            return Response(304, b"", b"", self.headers, self.etag)
        return self

    async def send(self, send: Send, respond: Respond | None, request_id: str) -> None:
        """By `respond` where the server has it, else as every ASGI server understands."""
        if respond:
            await respond(self.status, self.lines(request_id), self.body)
            return
        headers = [tuple(line.split(b": ", 1)) for line in self.lines(request_id).splitlines()]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})

    def lines(self, request_id: str) -> bytes:
        """The header lines, each ended."""
        lines = b"x-request-id: %b\r\nx-content-type-options: nosniff\r\n" % request_id.encode()
        # A 304 says nothing of a body: a length of 0 would be that of the document (RFC 9110, section 8.6).
        if self.status != 304:
            lines += b"content-type: %b\r\ncontent-length: %d\r\n" % (self.content_type, len(self.body))
        for name, value in self.headers:
            lines += b"%b: %b\r\n" % (name, value)
        return lines


def not_modified(if_none_match: bytes, etag: bytes) -> bool:
    """Whether an If-None-Match header (RFC 9110, section 13.1.2), empty for none, names this entity tag, or is `*`."""
    return if_none_match.strip() == b"*" or etag in ENTITY_TAG.findall(if_none_match)


def encode(document: Any) -> bytes:
    """JSON, numpy arrays and scalars included."""
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
