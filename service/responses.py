"""What a client is sent: JSON documents and RFC 9457 problem documents."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import orjson

from service.errors import Problem

Send = Callable[[dict[str, Any]], Awaitable[None]]

JSON, PROBLEM_JSON = b"application/json", b"application/problem+json"


@dataclass(frozen=True)
class Response:
    """A response whose body is whole."""

    status: int
    content_type: bytes
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()

    @classmethod
    def json(cls, document: Any) -> "Response":
        return cls(200, JSON, encode(document))

    @classmethod
    def problem(cls, problem: Problem, request_id: str) -> "Response":
        return cls(problem.status, PROBLEM_JSON, encode(problem.document(request_id)), problem.headers)

    async def send(self, send: Send, request_id: str) -> None:
        headers = [
            (b"content-type", self.content_type),
            (b"content-length", str(len(self.body)).encode()),
            (b"x-request-id", request_id.encode()),
            (b"x-content-type-options", b"nosniff"),
            *self.headers,
        ]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


def encode(document: Any) -> bytes:
    """JSON, numpy arrays and scalars included."""
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
