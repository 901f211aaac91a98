"""What a client sends: the head of a request, its body, the images in it and the options asked for."""

import asyncio
import re
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from service import multipart
from service.answers import Options
from service.errors import BadParameter, BodyTimeout, BodyTooLarge, UnsupportedMediaType
from service.settings import Settings

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]

REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
# How much more than the limit is still read of a body, so that its sender comes to read the refusal.
DRAINED_BODIES = 4
SWITCHES = {"true": True, "1": True, "false": False, "0": False}


class Disconnected(Exception):
    """The client has gone; there is nobody to answer."""


@dataclass(frozen=True)
class Upload:
    """The files of one request. `several` tells that the answer is a list."""

    files: list[bytes]
    several: bool


class Request:
    """One HTTP request."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query: bytes = scope["query_string"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self._receive = receive
        given = self.headers.get(b"x-request-id", b"")
        self.id = given.decode() if REQUEST_ID.fullmatch(given) else new_request_id()

    async def upload(self, settings: Settings) -> Upload:
        """The files sent, whole but not decoded. Raises UnsupportedMediaType and what `body` and `files` raise."""
        content_type = self.headers.get(b"content-type", b"application/octet-stream")
        media_type = content_type.partition(b";")[0].strip().lower()
        encoding = self.headers.get(b"content-encoding", b"identity").strip().lower()
        if encoding != b"identity":
            raise UnsupportedMediaType(
                "The body is compressed; images are already, so send it without a Content-Encoding.",
                ((b"accept-encoding", b"identity"),),
            )
        if media_type == b"multipart/form-data":
            body = await self.body(settings.max_body_bytes, settings.body_timeout_s)
            files = multipart.files(body, content_type, settings.max_images)
            return Upload(files, len(files) > 1)
        if media_type == b"application/octet-stream" or media_type.startswith(b"image/"):
            return Upload([await self.body(settings.max_body_bytes, settings.body_timeout_s)], False)
        raise UnsupportedMediaType(
            f"A body of type {media_type.decode('latin-1')!r} is not an image; "
            "send image/* or application/octet-stream, or multipart/form-data with parts named 'file'."
        )

    async def body(self, limit: int, timeout_s: float) -> bytes:
        """The whole body. Raises BodyTooLarge, from the header where it tells, BodyTimeout or Disconnected."""
        too_large = BodyTooLarge(f"The body is larger than the {limit:,} bytes accepted.")
        declared = self.headers.get(b"content-length", b"")
        if declared.isdigit() and int(declared) > limit:
            raise too_large
        chunks, size, more = [], 0, True
        try:
            async with asyncio.timeout(timeout_s):
                while more and size <= DRAINED_BODIES * limit:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise Disconnected
                    chunk = message.get("body", b"")
                    size += len(chunk)
                    if size <= limit:
                        chunks.append(chunk)
                    more = message.get("more_body", False)
        except TimeoutError:
            raise BodyTimeout(f"The body did not arrive within {timeout_s:g} s.") from None
        if size > limit:
            raise too_large
        return b"".join(chunks)

    def options(self, classes: int) -> Options:
        """The options of a classification among so many classes. Raises BadParameter."""
        given = parse_qsl(self.query.decode("latin-1"), keep_blank_values=True)
        values = dict(given)
        unknown = values.keys() - {"top_k", "logits"}
        if unknown:
            raise BadParameter(f"There is no parameter {min(unknown)!r}; there are top_k and logits.")
        if len(values) < len(given):
            raise BadParameter("A parameter is given more than once.")
        # The default is not checked: a model may have fewer classes.
        top_k = _top_k(values["top_k"], classes) if "top_k" in values else Options.top_k
        return Options(top_k, _switch("logits", values.get("logits", "false")))


def new_request_id() -> str:
    return uuid.uuid4().hex


def _top_k(text: str, classes: int) -> int | None:
    if text == "all":
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise BadParameter(f"top_k is {text!r}; it must be a number from 1 to {classes}, or all.")
    return check_top_k(int(text), classes)


def check_top_k(number: int, classes: int) -> int:
    if not 1 <= number <= classes:
        raise BadParameter(f"top_k is {number}; it must be a number from 1 to {classes}, or all.")
    return number


def _switch(name: str, text: str) -> bool:
    if text not in SWITCHES:
        raise BadParameter(f"{name} is {text!r}; it must be true or false.")
    return SWITCHES[text]
