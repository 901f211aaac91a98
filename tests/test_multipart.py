"""service.multipart: what a client's form holds comes out unchanged, and nothing hostile is more than a 4xx."""

from collections.abc import Sequence

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import BadParameter, BodyTooLarge, MalformedRequest, Problem
from service.multipart import Form, files
from service.responses import encode

BOUNDARY = b"XyZ"
CONTENT_TYPE = b"multipart/form-data; boundary=" + BOUNDARY
DISPOSITION = b'Content-Disposition: form-data; name="file"; filename="a.png"'
MANY = 1000


def form(*parts: bytes, end: bytes = b"--\r\n") -> bytes:
    """A body by hand: each part is its headers, an empty line and its content."""
    return b"".join(b"--" + BOUNDARY + b"\r\n" + part + b"\r\n" for part in parts) + b"--" + BOUNDARY + end


def part(content: bytes, headers: bytes = DISPOSITION) -> bytes:
    return headers + b"\r\n\r\n" + content


def encoded(contents: Sequence[bytes], name: str = "file", content_type: bytes = b"") -> tuple[bytes, bytes]:
    """The body and Content-Type an independent client makes of some files."""
    headers = {b"Content-Type": content_type} if content_type else {}
    request = httpx.Request(
        "POST",
        "http://localhost/",
        files=[(name, (f"{i} ö.png", content, "image/png")) for i, content in enumerate(contents)],
        headers=headers,
    )
    return request.read(), request.headers["content-type"].encode()


def is_refused_or_understood(body: bytes, content_type: bytes, max_files: int = MANY) -> None:
    """Either files come out or a client's error that can be sent."""
    try:
        outcome: list[bytes] | Problem = files(body, content_type, max_files)
    except Problem as problem:
        outcome = problem
    if isinstance(outcome, Problem):
        assert 400 <= outcome.status < 500
        assert encode(outcome.document("id"))
    else:
        assert 1 <= len(outcome) <= max_files
        assert sum(map(len, outcome)) <= len(body)


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=8))
@settings(deadline=None, max_examples=100)
def test_files_come_out_as_a_client_put_them_in(contents: list[bytes]) -> None:
    """Any bytes, in order, survive the round trip through an independent encoder."""
    body, content_type = encoded(contents)
    assert files(body, content_type, MANY) == contents


TREACHEROUS = st.lists(
    st.sampled_from(
        [b"\r\n", b"\r", b"\n", b"--", b"-", b"\r\n--Xy", b"--XyZ", b"XyZ--", b"\r\n\r\n", b"Z", b"\x00", b" "]
    ),
    max_size=12,
).map(b"".join)


@given(st.lists(TREACHEROUS.filter(lambda content: b"\r\n--XyZ" not in b"\r\n" + content), min_size=1, max_size=5))
@settings(deadline=None, max_examples=150)
def test_contents_that_look_like_boundaries_survive(contents: list[bytes]) -> None:
    """Line ends, dashes and all but the delimiter itself are content."""
    body, content_type = encoded(contents, content_type=CONTENT_TYPE)
    assert files(body, content_type, MANY) == contents


@pytest.mark.parametrize(
    "headers",
    [
        b"Content-Disposition: form-data; name=file",
        b'CONTENT-DISPOSITION: FORM-DATA; NAME="file"',
        b'content-disposition:form-data;name="file"',
        b'Content-Type: image/png\r\nContent-Disposition: form-data; filename="a;b=\\"c\\".png"; name="file"',
        b"Content-Disposition: form-data; name=\"file\"; filename*=UTF-8''%C3%B6.png\r\nContent-Length: 3",
    ],
)
def test_headers_are_read_as_the_rfc_allows(headers: bytes) -> None:
    """Case, order, quotes and further headers of a part do not matter."""
    assert files(form(part(b"abc", headers)), CONTENT_TYPE, 1) == [b"abc"]


@pytest.mark.parametrize(
    "content_type",
    [b'Multipart/Form-Data; charset=utf-8; Boundary="XyZ"', b"multipart/form-data;boundary=XyZ", CONTENT_TYPE],
)
def test_the_boundary_is_found_wherever_it_stands(content_type: bytes) -> None:
    """Quoted or not, whatever the case and order."""
    assert files(form(part(b"abc")), content_type, 1) == [b"abc"]


def test_an_epilogue_is_ignored() -> None:
    """RFC 2046, section 5.1.1: what follows the closing boundary does not count; it may be missing too."""
    assert files(form(part(b"abc"), end=b"--\r\nand so on"), CONTENT_TYPE, 1) == [b"abc"]
    assert files(form(part(b"abc"), end=b"--"), CONTENT_TYPE, 1) == [b"abc"]


def test_a_form_cut_anywhere_is_malformed() -> None:
    """No prefix of a form passes for a whole one."""
    body = form(part(b"abc\r\n--X"), part(b"")).removesuffix(b"\r\n")
    assert files(body, CONTENT_TYPE, 2) == [b"abc\r\n--X", b""]
    for length in range(len(body)):
        with pytest.raises(MalformedRequest):
            files(body[:length], CONTENT_TYPE, 2)


@pytest.mark.parametrize(
    "content_type",
    [b"multipart/form-data", b"multipart/form-data; boundary=", b'multipart/form-data; boundary=""', b"; charset=x"],
)
def test_a_missing_boundary_is_malformed(content_type: bytes) -> None:
    """A Content-Type without a boundary is a 400 that says so."""
    with pytest.raises(MalformedRequest, match="names no boundary"):
        files(form(part(b"abc")), content_type, 1)


@pytest.mark.parametrize("boundary", [b"other", b"X", b"x" * 1000, b"\xff\xfe"])
def test_another_boundary_is_malformed(boundary: bytes) -> None:
    """A boundary the body does not use, or one longer than allowed, is a 400."""
    with pytest.raises(MalformedRequest):
        files(form(part(b"abc")), b"multipart/form-data; boundary=" + boundary, 1)


@pytest.mark.parametrize(
    ("disposition", "named"),
    [
        (b'form-data; name="image"', "'image'"),
        (b'form-data; name="File"', "'File'"),
        (b'form-data; name=""', "''"),
        (b"form-data", "''"),
        (b'form-data; filename="file"', "''"),
        (b"form-data; name*=utf-8''file", "''"),
        (b'form-data; name="\xff"', "'\ufffd'"),
    ],
)
def test_a_part_of_another_name_is_refused(disposition: bytes, named: str) -> None:
    """Every part must be named `file`; the one that is not is quoted."""
    strange = part(b"x", b"Content-Disposition: " + disposition)
    for body in (form(strange), form(part(b"abc"), strange)):
        with pytest.raises(BadParameter) as refusal:
            files(body, CONTENT_TYPE, MANY)
        assert named in refusal.value.detail


def test_a_part_without_headers_is_refused() -> None:
    """A name is not carried over from the part before."""
    with pytest.raises(BadParameter):
        files(form(part(b"abc"), b"\r\nabc"), CONTENT_TYPE, MANY)


def test_a_form_without_parts_is_refused() -> None:
    """An empty form is understood, and has no image."""
    with pytest.raises(BadParameter, match="no part named 'file'"):
        files(form(), CONTENT_TYPE, MANY)


def test_an_empty_body_is_malformed() -> None:
    """A form of no bytes is the client's mistake."""
    with pytest.raises(MalformedRequest, match="truncated"):
        files(b"", CONTENT_TYPE, MANY)


def test_more_files_than_allowed_are_too_large() -> None:
    """The limit itself is accepted; one more is a 413 that names it."""
    contents = [bytes([i]) for i in range(6)]
    body, content_type = encoded(contents)
    assert files(body, content_type, 6) == contents
    with pytest.raises(BodyTooLarge, match="more than the 5 files"):
        files(body, content_type, 5)


@pytest.mark.parametrize(
    "headers",
    [
        DISPOSITION + b"\r\nX-Long: " + b"a" * 10_000,
        DISPOSITION + b"\r\n" + b"X" * 10_000 + b": a",
        DISPOSITION + b"\r\nX-Spaces:" + b" " * 10_000 + b"a",
        DISPOSITION + b"".join(b"\r\nX-%d: a" % i for i in range(1000)),
        b"\xff\xfe: a",
        b"no colon",
        b": no name",
    ],
    ids=["long value", "long name", "spaces", "many", "bytes", "no colon", "no name"],
)
def test_monstrous_headers_are_malformed(headers: bytes) -> None:
    """Headers of a part are bounded in size and number and must be headers."""
    with pytest.raises(MalformedRequest):
        files(form(part(b"abc", headers)), CONTENT_TYPE, MANY)


@given(st.binary(max_size=300))
@settings(deadline=None, max_examples=200)
def test_random_bytes_are_only_ever_a_clients_mistake(body: bytes) -> None:
    """No body, however wild, raises anything but a 4xx; nor does one that starts or ends like a form."""
    for wild in (body, b"--XyZ\r\n" + body, form(part(body)), form(part(b"abc", body)), form(body)):
        is_refused_or_understood(wild, CONTENT_TYPE)


FRAGMENTS = [
    *(b"--XyZ", b"\r\n", b"--", b"\r", b"\n", b":", b" ", b"\t", b"abc", b";", b'"', b"\\", b"\xff", b"\x00"),
    *(DISPOSITION, b"Content-Disposition: ", b"form-data; name=", b'"file"', b"name*=utf-8''%ff", b"\r\n\r\n"),
]


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=25).map(b"".join), st.integers(1, 3))
@settings(deadline=None, max_examples=200)
def test_scrambled_forms_are_only_ever_a_clients_mistake(body: bytes, max_files: int) -> None:
    """The pieces of a form in any order raise nothing but a 4xx."""
    is_refused_or_understood(body, CONTENT_TYPE, max_files)
    is_refused_or_understood(b"--XyZ\r\n" + body + b"\r\n--XyZ--", CONTENT_TYPE, max_files)


def arrived(pieces: Sequence[bytes], max_files: int) -> list[bytes] | None:
    """The files of a body that comes in these pieces; None where it is refused."""
    try:
        arriving = Form(CONTENT_TYPE, max_files)
        for piece in pieces:
            arriving.feed(piece)
        return arriving.close()
    except Problem:
        # Of several faults the one that is seen first is told.
        return None


NEARLY_PLAIN = st.lists(
    st.sampled_from(
        [
            b"--XyZ\r\n" + DISPOSITION + b"\r\n\r\nabc\r\n",
            b"--XyZ\r\n" + DISPOSITION + b"\r\nContent-Type: image/png\r\n\r\n\r\n",
            b"--XyZ\r\n" + DISPOSITION.upper() + b"\r\n\r\nabc\r\n",
            b"--XyZ\r\n" + DISPOSITION + b"\r\nContent-Type: " + b"x" * 9_000 + b"\r\n\r\nabc\r\n",
            *(b"--XyZ--\r\n", b"--XyZ--", b"--XyZ\r\n", b"--XyZ \r\n", b"--XyZabc\r\n", b"\r\n", b"abc\r\n"),
        ]
    ),
    max_size=6,
).map(b"".join)


@pytest.mark.slow
@given(NEARLY_PLAIN, st.integers(1, 3), st.integers(0, 200), st.booleans())
@settings(deadline=None, max_examples=400)
def test_a_form_means_the_same_whole_and_in_pieces(body: bytes, max_files: int, cut: int, closed: bool) -> None:
    """The short way for what nearly every client sends understands it as the long way does."""
    body += b"--XyZ--\r\n" if closed else b""
    assert arrived([body], max_files) == arrived([body[:cut], body[cut:]], max_files)
    assert arrived([body], max_files) == arrived([body[i : i + 1] for i in range(len(body))], max_files)


@given(
    st.one_of(
        st.binary(max_size=60),
        st.lists(st.sampled_from([b";", b"=", b'"', b"\\", b" ", b"*", b"boundary"])).map(b"".join),
    )
)
@settings(deadline=None, max_examples=200)
def test_random_content_types_are_only_ever_a_clients_mistake(tail: bytes) -> None:
    """No Content-Type raises anything but a 4xx."""
    is_refused_or_understood(form(part(b"abc")), b"multipart/form-data; " + tail)
    is_refused_or_understood(form(part(b"abc")), b"multipart/form-data; boundary=" + tail)
