"""service.responses: what goes over the wire, and what need not go again."""

import asyncio
import hashlib
import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import BadParameter, Overloaded
from service.responses import Response, not_modified

DOCUMENT = {"models": [{"name": "digits", "labels": ["0", "é"]}]}


def sent(response: Response) -> tuple[int, dict[bytes, bytes], bytes]:
    """Status, headers and body as an ASGI server sees them."""
    messages: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        messages.append(message)

    asyncio.run(response.send(send, None, "id-1"))
    start, body = messages
    assert (start["type"], body["type"]) == ("http.response.start", "http.response.body")
    headers = dict(start["headers"])
    assert len(headers) == len(start["headers"])
    return start["status"], headers, body["body"]


def test_json_is_sent_whole() -> None:
    """With its type, its length and the request's id, and nothing about caches."""
    status, headers, body = sent(Response.json(DOCUMENT))
    assert status == 200
    assert json.loads(body) == DOCUMENT
    assert headers == {
        b"content-type": b"application/json",
        b"content-length": str(len(body)).encode(),
        b"x-request-id": b"id-1",
        b"x-content-type-options": b"nosniff",
        b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    }


def test_a_problem_is_sent_with_its_status_and_headers() -> None:
    """RFC 9457's type; Retry-After where the problem has one."""
    status, headers, body = sent(Response.problem(BadParameter("No."), "id-1"))
    assert (status, headers[b"content-type"]) == (422, b"application/problem+json")
    assert json.loads(body)["request_id"] == "id-1"
    assert sent(Response.problem(Overloaded("Later.", 3), "id-1"))[1][b"retry-after"] == b"3"


def test_a_cacheable_document_has_a_strong_tag() -> None:
    """The same body has the same tag, another body another, and caches are told to ask again."""
    status, headers, body = sent(Response.cacheable_json(DOCUMENT))
    assert (status, body) == (200, Response.json(DOCUMENT).body)
    assert headers[b"etag"] == b'"%b"' % hashlib.sha256(body).hexdigest()[:32].encode()
    assert headers[b"cache-control"] == b"no-cache"
    assert sent(Response.cacheable_json(dict(DOCUMENT)))[1][b"etag"] == headers[b"etag"]
    assert sent(Response.cacheable_json(DOCUMENT | {"more": 1}))[1][b"etag"] != headers[b"etag"]


def test_a_client_that_has_the_document_is_sent_none() -> None:
    """304 with the tag and nothing about a body; the response that is kept stays as it is."""
    kept = Response.cacheable_json(DOCUMENT)
    status, headers, body = sent(kept.unless_known(kept.etag))
    assert (status, body) == (304, b"")
    assert headers == {
        b"x-request-id": b"id-1",
        b"x-content-type-options": b"nosniff",
        b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
        b"cache-control": b"no-cache",
        b"etag": kept.etag,
    }
    for other in (b"", b'"other"'):
        assert kept.unless_known(other) is kept


@pytest.mark.parametrize("if_none_match", [b"*", b'"a"', b""])
def test_what_has_no_tag_is_always_sent(if_none_match: bytes) -> None:
    """A problem or an answer is never a 304."""
    response = Response.json(DOCUMENT)
    assert response.unless_known(if_none_match) is response


@pytest.mark.parametrize(
    "header",
    [
        *(b'"abc"', b'W/"abc"', b"*", b" * ", b'"x", "abc"', b'"x","abc","y"', b'W/"x",\tW/"abc"', b'"x,y", "abc"'),
        *(b',, "abc" ,', b'"", "abc"', b'"a b", "abc"'),
    ],
)
def test_a_tag_is_found_in_a_list(header: bytes) -> None:
    """Compared weakly, as RFC 9110 asks for If-None-Match."""
    assert not_modified(header, b'"abc"')


@pytest.mark.parametrize(
    "header",
    [b"", b"abc", b'"ABC"', b'"abcd"', b'"ab"', b'"x, abc"', b"'abc'", b'"*"', b"**", b'"abc', b'abc"', b"*, x", b'""'],
)
def test_another_tag_is_no_match(header: bytes) -> None:
    """Tags are opaque: case, quotes and parts of them count."""
    assert not not_modified(header, b'"abc"')


TAGS = st.text(st.characters(codec="latin-1", exclude_characters='"', min_codepoint=33, exclude_categories=["Cc"]))


@pytest.mark.slow
@given(st.lists(st.tuples(st.sampled_from(["", "W/"]), TAGS), max_size=6), TAGS)
@settings(deadline=None, max_examples=200)
def test_a_list_matches_what_it_names(listed: list[tuple[str, str]], tag: str) -> None:
    """Whatever stands in the tags, commas among it."""
    header = ", ".join(f'{weak}"{name}"' for weak, name in listed).encode("latin-1")
    assert not_modified(header, f'"{tag}"'.encode("latin-1")) == (tag in [name for _, name in listed])


@pytest.mark.parametrize("piece", [b'"', b"a", b'"a', b'" ', b'W/"'])
def test_a_hostile_header_takes_no_time(piece: bytes) -> None:
    """64 KiB of anything is read in a blink."""
    started = time.perf_counter()
    not_modified(piece * (65536 // len(piece)) + b"\x00", b'"abc"')
    assert time.perf_counter() - started < 0.5


def test_a_server_that_takes_whole_answers_gets_one() -> None:
    """The same status, headers and body in one call."""
    taken: list[tuple[int, bytes, bytes]] = []

    async def respond(status: int, lines: bytes, body: bytes) -> None:
        taken.append((status, lines, body))

    async def send(message: object) -> None:
        raise AssertionError("it was sent already")

    asyncio.run(Response(201, b"a/b", b"body", ((b"x-more", b"y"),)).send(send, respond, "id-1"))
    ((status, lines, body),) = taken
    assert (status, body) == (201, b"body")
    assert sorted(lines.splitlines(keepends=True)) == [
        b"content-length: 4\r\n",
        b"content-type: a/b\r\n",
        b"x-content-type-options: nosniff\r\n",
        b"x-more: y\r\n",
        b"x-request-id: id-1\r\n",
    ]
