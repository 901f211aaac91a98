"""What a client sends: the head of a request, its body, the images in it and the options asked for."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import parse_qsl

from service import multipart, tensors
from service.answers import Options
from service.errors import BadParameter, BodyTimeout, BodyTooLarge, MalformedRequest, UnsupportedMediaType
from service.ids import new_request_id
from service.images import InputSpec, Pixels
from service.protocol import REMEMBER, RESPOND, WAIT, Direct, Receive, Scope
from service.responses import Respond
from service.settings import Settings

OCTETS = b"application/octet-stream"
REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
# Milliseconds that the client will wait, as the field's proxies and clients write such: a whole number.
TIMEOUT = b"x-request-timeout-ms"
TIMEOUT_MS = re.compile(rb"0*[1-9][0-9]{0,9}")
COVERAGE = re.compile(r"[01]?\.?[0-9]{0,9}(?<=[0-9])")
SWITCHES = {"true": True, "1": True, "false": False, "0": False}


class Disconnected(Exception):
    """The client has gone; there is nobody to answer."""


@dataclass(frozen=True)
class Upload:
    """The files of one request, or a tensor (N, H, W, 3) instead. `several` tells that the answer is a list."""

    files: Sequence[bytes]
    several: bool
    tensor: Pixels | None = None


class Request:
    """One HTTP request."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query: bytes = scope["query_string"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        extensions = scope.get("extensions", {})
        self.respond: Respond | None = extensions.get(RESPOND)
        self.remember: Callable[[Direct], None] | None = extensions.get(REMEMBER)
        self._wait: Callable[[float], None] | None = extensions.get(WAIT)
        self._receive = receive
        given = self.headers.get(b"x-request-id")
        # The client's own, if it is sane.
        self.given_id = given.decode() if given and REQUEST_ID.fullmatch(given) else None
        self.id = self.given_id or new_request_id()

    async def upload(self, settings: Settings, spec: InputSpec) -> Upload:
        """What is sent, whole but not decoded.

        Raises UnsupportedMediaType and what `body`, `Form` and the functions of `tensors` raise.
        """
        content_type = self.headers.get(b"content-type", OCTETS)
        media_type = _media_type(content_type)
        self.refuse_encoded()
        if self.is_file():
            return Upload([await self.body(settings)], False)
        if media_type == b"multipart/form-data":
            return await self._form(content_type, settings)
        if media_type == tensors.NPY:
            return _tensor(tensors.from_npy(await self.body(settings), spec, settings.max_images))
        if media_type == OCTETS:
            body = await self.body(settings)
            shape, dtype = self.headers[tensors.SHAPE_HEADER], self.headers.get(tensors.DTYPE_HEADER, b"")
            return _tensor(tensors.from_raw(body, shape, dtype, spec, settings.max_images))
        raise UnsupportedMediaType(
            f"A body of type {media_type.decode('latin-1')!r} is not an image; send image/* or "
            "application/octet-stream, multipart/form-data with parts named 'file', or application/x-npy."
        )

    def is_file(self) -> bool:
        """Whether the body itself is one file, rather than a form or a tensor."""
        media_type = _media_type(self.headers.get(b"content-type", OCTETS))
        return media_type.startswith(b"image/") or (media_type == OCTETS and tensors.SHAPE_HEADER not in self.headers)

    def is_json(self) -> bool:
        """Whether it says so."""
        return _media_type(self.headers.get(b"content-type", b"")) == b"application/json"

    def refuse_encoded(self) -> None:
        """Raises UnsupportedMediaType for a compressed body."""
        encoding = self.headers.get(b"content-encoding")
        if encoding is not None and encoding.strip().lower() != b"identity":
            raise UnsupportedMediaType(
                "The body is compressed; images are already, so send it without a Content-Encoding.",
                ((b"accept-encoding", b"identity"),),
            )

    def timeout_s(self) -> float:
        """How long the client will wait, from its request's head on; without end unless it says so.

        Raises MalformedRequest.
        """
        given = self.headers.get(TIMEOUT)
        if given is None:
            return math.inf
        if not TIMEOUT_MS.fullmatch(given):
            raise MalformedRequest(f"{TIMEOUT.decode()} is a whole number of milliseconds, at least 1.")
        return int(given) / 1000

    def waits(self, until: float) -> None:
        """The client waits until then, by time.perf_counter, and need not be told anything later."""
        if self._wait:
            self._wait(until)

    async def body(self, settings: Settings) -> bytes:
        """The whole body. Raises what `_next` raises."""
        first, more = await self._next(settings, 0)
        if not more:
            return first
        chunks, size = [first], len(first)
        while more:
            chunk, more = await self._next(settings, size)
            size += len(chunk)
            chunks.append(chunk)
        return b"".join(chunks)

    async def _next(self, settings: Settings, so_far: int) -> tuple[bytes, bool]:
        """The next piece of the body after so many bytes, and whether there are more.

        Raises BodyTooLarge, from the header where it tells, BodyTimeout or Disconnected.
        """
        if not so_far:
            declared = self.headers.get(b"content-length", b"0")
            # A number of more digits than 18 is longer than any limit, and than Python likes to read.
            if len(declared) > 18 or (declared.isdigit() and int(declared) > settings.max_body_bytes):
                raise _too_large(settings)
        try:
            message = await self._receive()
        except TimeoutError:
            raise BodyTimeout(f"The body did not arrive within {settings.body_timeout_s:g} s.") from None
        if message["type"] == "http.disconnect":
            raise Disconnected
        chunk: bytes = message.get("body", b"")
        if so_far + len(chunk) > settings.max_body_bytes:
            raise _too_large(settings)
        return chunk, message.get("more_body", False)

    async def _form(self, content_type: bytes, settings: Settings) -> Upload:
        form = multipart.Form(content_type, settings.max_images)
        size, more = 0, True
        while more:
            chunk, more = await self._next(settings, size)
            size += len(chunk)
            form.feed(chunk)
        files = form.close()
        return Upload(files, len(files) > 1)

    def options(self, classes: int, coverages: tuple[float, ...]) -> Options:
        """The options of a classification among so many classes, with sets of these coverages. Raises BadParameter."""
        return _options(self.query, classes, coverages)


def _tensor(tensor: tensors.Tensor) -> Upload:
    return Upload((), tensor.several, tensor.pixels)


def _too_large(settings: Settings) -> BodyTooLarge:
    return BodyTooLarge(f"The body is larger than the {settings.max_body_bytes:,} bytes accepted.")


@lru_cache(maxsize=256)
def _media_type(content_type: bytes) -> bytes:
    return content_type.partition(b";")[0].strip().lower()


# Clients ask the same again and again.
@lru_cache(maxsize=1024)
def _options(query: bytes, classes: int, coverages: tuple[float, ...]) -> Options:
    given = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    values = dict(given)
    unknown = values.keys() - {"top_k", "logits", "coverage", "explain"}
    if unknown:
        raise BadParameter(f"There is no parameter {min(unknown)!r}; there are top_k, logits, coverage and explain.")
    if len(values) < len(given):
        raise BadParameter("A parameter is given more than once.")
    # The default is not checked: a model may have fewer classes.
    top_k = _top_k(values["top_k"], classes) if "top_k" in values else Options.top_k
    coverage = _coverage(values["coverage"], coverages) if "coverage" in values else None
    logits, explain = (_switch(name, values.get(name, "false")) for name in ("logits", "explain"))
    return Options(top_k, logits, coverage, explain)


def _top_k(text: str, classes: int) -> int | None:
    if text == "all":
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise BadParameter(f"top_k is {text!r}; it must be a number from 1 to {classes}, or all.")
    return check_top_k(int(text), classes)


def _coverage(text: str, offered: tuple[float, ...]) -> float:
    known = {f"{coverage:g}": coverage for coverage in sorted(offered)}
    if not known:
        raise BadParameter("This model is not calibrated, so it offers no coverage.")
    # As numbers: .95 and 0.950 are meant as 0.95.
    given = float(text) if COVERAGE.fullmatch(text) else None
    if given not in offered:
        raise BadParameter(f"coverage is {text!r}; this model offers {', '.join(known)}.")
    return given


def check_top_k(number: int, classes: int) -> int:
    if not 1 <= number <= classes:
        raise BadParameter(f"top_k is {number}; it must be a number from 1 to {classes}, or all.")
    return number


def _switch(name: str, text: str) -> bool:
    if text not in SWITCHES:
        raise BadParameter(f"{name} is {text!r}; it must be true or false.")
    return SWITCHES[text]
