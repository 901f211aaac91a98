"""service.requests: heads, bodies and options, from clients who mean well and from others."""

import asyncio
import io
import math
import re
from collections.abc import Coroutine
from typing import Any, TypeVar
from urllib.parse import quote

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from service.answers import Options
from service.errors import BadParameter, BodyTimeout, BodyTooLarge, MalformedRequest, UnsupportedMediaType
from service.images import InputSpec
from service.protocol import Message
from service.requests import Disconnected, Request, Upload
from service.settings import Settings

T = TypeVar("T")

FORM = b"multipart/form-data; boundary=XyZ"
COVERAGES = (0.95, 0.9)
LIMITS = Settings(max_body_bytes=1000, max_images=2, body_timeout_s=5)
TEN = Settings(max_body_bytes=10)
SPEC = InputSpec("photo", 2, 3, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Wire:
    """A connection that delivers these messages, `delay_s` apart, and then nothing more."""

    def __init__(self, *messages: Message, delay_s: float = 0) -> None:
        self.left = list(messages)
        self.delivered = 0
        self._delay_s = delay_s

    async def receive(self) -> Message:
        await asyncio.sleep(self._delay_s)
        if not self.left:
            await asyncio.Event().wait()
        self.delivered += 1
        return self.left.pop(0)


def chunk(body: bytes, more: bool = True) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


def sent(*chunks: bytes) -> Wire:
    """A body in chunks, properly ended."""
    return Wire(*(chunk(part) for part in chunks), chunk(b"", more=False))


GONE: Message = {"type": "http.disconnect"}


def request(wire: Wire | None = None, query: bytes = b"", **headers: bytes) -> Request:
    """A request over a wire; the headers' underscores are dashes."""
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/models/pets/classify",
        "query_string": query,
        "headers": [(name.replace("_", "-").encode(), value) for name, value in headers.items()],
    }
    return Request(scope, (wire or sent()).receive)


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(coroutine, 20))


def form(*contents: bytes) -> bytes:
    head = b'--XyZ\r\nContent-Disposition: form-data; name="file"\r\n\r\n'
    return b"".join(head + content + b"\r\n" for content in contents) + b"--XyZ--\r\n"


@pytest.mark.parametrize(
    ("query", "options"),
    [
        (b"", Options(3, False)),
        (b"top_k=1", Options(1, False)),
        (b"top_k=10", Options(10, False)),
        (b"top_k=007", Options(7, False)),
        (b"top_k=all", Options(None, False)),
        (b"logits=true", Options(3, True)),
        (b"logits=1", Options(3, True)),
        (b"logits=false&top_k=2", Options(2, False)),
        (b"logits=0", Options(3, False)),
        (b"top%5Fk=%32&&", Options(2, False)),
    ],
)
def test_options_are_read(query: bytes, options: Options) -> None:
    """Every way to say what one wants of ten classes."""
    assert request(query=query).options(10, COVERAGES) == options


@pytest.mark.parametrize(
    "value", ["0", "11", "-1", "+1", "1.0", "1e1", "abc", "", "ALL", " 1", "1 ", "½", "²", "٣", "9" * 5000]
)
def test_a_top_k_out_of_range_is_refused(value: str) -> None:
    """Only whole numbers from 1 to the number of classes in plain digits, or all; the message names the range."""
    query = b"top_k=" + "".join(f"%{byte:02X}" for byte in value.encode()).encode()
    with pytest.raises(BadParameter, match="from 1 to 10, or all"):
        request(query=query).options(10, COVERAGES)


@pytest.mark.parametrize("switch", ["logits", "explain"])
@pytest.mark.parametrize("value", [b"yes", b"True", b"", b"2", b"%FF", b"\xff"])
def test_a_switch_is_true_or_false(value: bytes, switch: str) -> None:
    """Anything else is refused rather than guessed."""
    with pytest.raises(BadParameter, match=rf"{switch} is .* must be true or false"):
        request(query=switch.encode() + b"=" + value).options(10, COVERAGES)


@pytest.mark.parametrize("query", [b"top_k=1&top_k=1", b"logits=true&logits=false", b"top_k=1&top%5Fk=2"])
def test_a_parameter_given_twice_is_refused(query: bytes) -> None:
    """Nobody has to know which one would count."""
    with pytest.raises(BadParameter, match="more than once"):
        request(query=query).options(10, COVERAGES)


@pytest.mark.parametrize(("query", "named"), [(b"topk=1", "topk"), (b"x", "x"), (b"TOP_K=1", "TOP_K"), (b"=1", "")])
def test_an_unknown_parameter_is_refused(query: bytes, named: str) -> None:
    """A misspelt parameter is named, and so are those there are."""
    with pytest.raises(BadParameter, match=f"no parameter '{named}'; there are top_k, logits, coverage and explain"):
        request(query=query).options(10, COVERAGES)


@pytest.mark.parametrize("text", ["0.9", ".9", "0.90", "0.900000"])
def test_a_coverage_is_a_number(text: str) -> None:
    """However it is written."""
    assert request(query=f"coverage={text}".encode()).options(10, COVERAGES).coverage == 0.9


@pytest.mark.parametrize(
    "text", ["0.91", "90", "90%", "", ".", "nan", "inf", "-0.9", "+0.9", "9e-1", "0.9000000001", "٠.٩"]
)
def test_only_offered_coverages_are_given(text: str) -> None:
    """Any other is refused, and those there are are told."""
    with pytest.raises(BadParameter, match=r"this model offers 0\.9, 0\.95"):
        request(query=f"coverage={quote(text)}".encode()).options(10, COVERAGES)


def test_a_model_without_calibration_offers_no_coverage() -> None:
    """And says why."""
    with pytest.raises(BadParameter, match="not calibrated"):
        request(query=b"coverage=0.95").options(10, ())


@pytest.mark.parametrize("classes", [1, 2])
def test_a_model_of_few_classes_is_classified_without_options(classes: int) -> None:
    """The default top_k never makes a request bad."""
    request().options(classes, COVERAGES)
    with pytest.raises(BadParameter):
        request(query=b"top_k=3").options(classes, COVERAGES)


@given(st.one_of(st.binary(max_size=40), st.binary(max_size=12).map(lambda value: b"top_k=" + value)))
@effort(deadline=None, max_examples=200)
def test_no_query_is_more_than_a_bad_parameter(query: bytes) -> None:
    """Random queries give options in range or a 422."""
    try:
        options = request(query=query).options(10, COVERAGES)
    except BadParameter:
        return
    assert options.top_k is None or 1 <= options.top_k <= 10


def test_a_body_is_joined_from_its_chunks() -> None:
    """Chunks of any size, empty ones and absent ones among them."""
    bare: Message = {"type": "http.request", "more_body": True}
    last: Message = {"type": "http.request", "body": b"def"}
    wire = Wire(chunk(b"abc"), chunk(b""), bare, last)
    assert run(request(wire).body(LIMITS)) == b"abcdef"


@pytest.mark.parametrize("headers", [{}, {"content_length": b"10"}])
def test_a_body_of_exactly_the_limit_is_accepted(headers: dict[str, bytes]) -> None:
    """The limit is the last size that is fine."""
    assert run(request(sent(b"12345", b"67890"), **headers).body(TEN)) == b"1234567890"


def test_a_body_declared_too_large_is_refused_unread() -> None:
    """Its header is enough."""
    wire = sent(b"12345678901")
    with pytest.raises(BodyTooLarge, match="larger than the 10 bytes"):
        run(request(wire, content_length=b"11").body(TEN))
    assert wire.delivered == 0


@pytest.mark.parametrize(
    "declared", [{}, {"content_length": b"3"}, {"content_length": b"x"}, {"content_length": b"-1"}]
)
def test_a_body_streamed_too_large_is_refused(declared: dict[str, bytes]) -> None:
    """Without a length, or with a false one, the bytes are counted, and no more of them are read."""
    wire = sent(b"123456", b"78901", b"2")
    with pytest.raises(BodyTooLarge, match="larger than the 10 bytes"):
        run(request(wire, **declared).body(TEN))
    assert wire.delivered == 2


def test_a_body_that_does_not_end_in_time_is_refused() -> None:
    """The connection keeps the time; its TimeoutError becomes a problem that tells the limit."""

    async def late() -> Message:
        raise TimeoutError

    wire = Wire()
    wire.receive = late  # type: ignore[method-assign]
    with pytest.raises(BodyTimeout, match=r"within 5 s"):
        run(request(wire).body(LIMITS))


@pytest.mark.parametrize("before", [[], [chunk(b"abc")]], ids=["at once", "early"])
def test_a_client_that_leaves_is_not_answered(before: list[Message]) -> None:
    """A disconnect in the middle of a body raises Disconnected."""
    with pytest.raises(Disconnected):
        run(request(Wire(*before, GONE)).body(TEN))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content_type": b"image/png"},
        {"content_type": b"IMAGE/JPEG; quality=1"},
        {"content_type": b"image/x-unheard-of"},
        {"content_type": b" application/octet-stream "},
        {"content_type": b"image/png", "content_encoding": b"Identity"},
    ],
)
def test_an_image_as_the_body_is_one_file(headers: dict[str, bytes]) -> None:
    """Any image type, octets or no type at all: the body is the file, whatever it is."""
    assert run(request(sent(b"not ", b"yet an image"), **headers).upload(LIMITS, SPEC)) == Upload(
        [b"not yet an image"], False
    )


@pytest.mark.parametrize(
    "content_type",
    [b"text/plain", b"application/json", b"image", b"imagery/png", b"application/x-www-form-urlencoded", b"\xff/\xfe"],
)
def test_another_media_type_is_refused_unread(content_type: bytes) -> None:
    """415, with what to send instead."""
    wire = sent(b"abc")
    with pytest.raises(UnsupportedMediaType, match=r"send image/\* or application/octet-stream"):
        run(request(wire, content_type=content_type).upload(LIMITS, SPEC))
    assert wire.delivered == 0


def test_without_a_timeout_a_client_waits_for_ever() -> None:
    """That is, as long as the service lets it."""
    assert request().timeout_s() == math.inf


@pytest.mark.parametrize(("value", "seconds"), [(b"1", 0.001), (b"0250", 0.25), (b"9999999999", 9_999_999.999)])
def test_a_timeout_is_in_milliseconds(value: bytes, seconds: float) -> None:
    """A whole number of them."""
    assert request(x_request_timeout_ms=value).timeout_s() == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value", [b"", b"0", b"-1", b"+1", b"1.5", b"1e3", b"1s", b"1 ", b"1_0", b"9" * 11, "٣".encode()]
)
def test_a_timeout_that_is_none_is_refused(value: bytes) -> None:
    """Rather than taken for another, or for none."""
    with pytest.raises(MalformedRequest, match="x-request-timeout-ms is a whole number"):
        request(x_request_timeout_ms=value).timeout_s()


@pytest.mark.parametrize("encoding", [b"gzip", b"br", b"identity, gzip", b"GZIP"])
@pytest.mark.parametrize("content_type", [b"image/png", FORM, b"application/octet-stream", b"application/x-npy"])
def test_a_compressed_body_is_refused_unread(encoding: bytes, content_type: bytes) -> None:
    """415 with the Accept-Encoding header that RFC 9110 asks for."""
    wire = sent(b"abc")
    with pytest.raises(UnsupportedMediaType, match="compressed") as refusal:
        run(request(wire, content_type=content_type, content_encoding=encoding).upload(LIMITS, SPEC))
    assert refusal.value.headers == ((b"accept-encoding", b"identity"),)
    assert wire.delivered == 0


def test_a_form_of_one_file_is_answered_as_one_image() -> None:
    """Only several files make the answer a list."""
    assert run(request(sent(form(b"a")), content_type=FORM).upload(LIMITS, SPEC)) == Upload([b"a"], False)
    assert run(request(sent(form(b"a", b"b")), content_type=FORM).upload(LIMITS, SPEC)) == Upload([b"a", b"b"], True)


def test_the_settings_bound_an_upload() -> None:
    """max_body_bytes and max_images are what is enforced."""
    with pytest.raises(BodyTooLarge, match="1,000 bytes"):
        run(request(sent(b"x" * 1001)).upload(LIMITS, SPEC))
    with pytest.raises(BodyTooLarge, match="1,000 bytes"):
        run(request(sent(form(b"x" * 1001)), content_type=FORM).upload(LIMITS, SPEC))
    with pytest.raises(BodyTooLarge, match="2 files"):
        run(request(sent(form(b"a", b"b", b"c")), content_type=FORM).upload(LIMITS, SPEC))


def test_a_broken_form_is_malformed() -> None:
    """The boundary in the header and the form itself are checked."""
    with pytest.raises(MalformedRequest):
        run(request(sent(form(b"a")[:-5]), content_type=FORM).upload(LIMITS, SPEC))
    with pytest.raises(MalformedRequest):
        run(request(sent(form(b"a")), content_type=b"multipart/form-data").upload(LIMITS, SPEC))


@pytest.mark.parametrize("given_id", [b"a", b"A.b-c_9", b"0" * 128, b"3fa85f64-5717-4562-b3fc-2c963f66afa6"])
def test_a_sane_request_id_is_kept(given_id: bytes) -> None:
    """A client's own id comes back, so that it finds its request again."""
    assert request(x_request_id=given_id).id == given_id.decode()


@pytest.mark.parametrize(
    "given_id",
    [b"", b"0" * 129, b"a b", b"a\r\nset-cookie: b", b"a\n", b"<script>", b'"', b"\xff", "é".encode(), b"a/b", b"\x00"],
)
def test_a_hostile_request_id_is_replaced(given_id: bytes) -> None:
    """What could split a header, a log line or a page is not repeated."""
    made = request(x_request_id=given_id).id
    assert re.fullmatch(r"[0-9a-f]{32}", made)
    assert made != request(x_request_id=given_id).id


@pytest.mark.parametrize(
    "headers",
    [
        {"content_type": b"application/octet-stream", "x_tensor_shape": b"2,2,3,3"},
        {"x_tensor_shape": b"2,2,3,3", "x_tensor_dtype": b"uint8"},
    ],
)
def test_bytes_with_a_shape_are_a_tensor(headers: dict[str, bytes]) -> None:
    """Without the header they are a file."""
    upload = run(request(sent(bytes(range(36))), **headers).upload(LIMITS, SPEC))
    assert upload.several
    assert upload.tensor is not None
    assert upload.tensor.tobytes() == bytes(range(36))


def test_an_npy_body_is_a_tensor() -> None:
    """One image of (H, W, 3) is answered as one."""
    file = io.BytesIO()
    np.save(file, np.zeros((2, 3, 3), np.uint8))
    upload = run(request(sent(file.getvalue()), content_type=b"application/x-npy").upload(LIMITS, SPEC))
    assert not upload.several
    assert upload.tensor is not None
    assert upload.tensor.shape == (1, 2, 3, 3)
