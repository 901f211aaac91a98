"""service.heads: a head is found again by its bytes, and no other head is taken for it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.heads import LONGEST_HEAD, MOST_HEADS, Heads

HEAD = b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\nX-Y: z\r\n\r\n"


def request(body: bytes, head: bytes = HEAD) -> bytes:
    return head % len(body) + body


def remembering(data: bytes) -> Heads[str]:
    heads: Heads[str] = Heads()
    heads.remember(data, "it")
    return heads


@pytest.mark.parametrize(
    "head",
    [HEAD, HEAD.replace(b"Content-L", b"content-l"), HEAD.replace(b": %d", b":%d"), HEAD.replace(b"X-Y: z\r\n", b"")],
)
def test_a_head_is_found_under_any_length(head: bytes) -> None:
    """With the body that comes under it, wherever in the head its length stands."""
    heads = remembering(request(b"abc", head))
    for body in (b"abc", b"", b"x" * 1000, b"\r\n\r\nContent-Length: 5\r\n\r\n"):
        assert heads.find(request(body, head)) == ("it", body)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        request(b"abc")[:-1],
        request(b"abc") + b"\r\n",
        request(b"abc") * 2,
        request(b"abc").replace(b"X-Y: z", b"X-Y: y"),
        request(b"abc").replace(b"/a", b"/b"),
        request(b"abc").replace(b"Content-Length", b"content-length"),
        request(b"abc").replace(b"Content-Length: 3", b"Content-Length: -3"),
        request(b"abc").replace(b"Content-Length: 3", b"Content-Length: 3, 3"),
        request(b"abc").replace(b"Content-Length: 3\r\n", b"Content-Length: 3\r\nContent-Length: 3\r\n"),
        request(b"abc").replace(b"Content-Length: 3\r\n", b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n"),
        request(b"abc").replace(b"Content-Length: 3\r\n", b"Content-Length: \r\n"),
        request(b"abc").replace(b"Content-Length: 3\r\n", b""),
        request(b"abc").replace(b"\r\n", b"\n"),
        b"G" + request(b"abc"),
    ],
)
def test_what_is_another_head_or_no_whole_request_is_not_found(data: bytes) -> None:
    """It takes the parser's way."""
    assert remembering(request(b"abc")).find(data) is None


@given(st.binary(max_size=30), st.integers(0, 80), st.binary(max_size=8))
def test_only_the_same_bytes_are_the_same_head(body: bytes, at: int, put: bytes) -> None:
    """Whatever is put anywhere into a head: it is found only if nothing but the digits of its length has changed."""
    data = HEAD % len(body)
    changed = data[:at] + put + data[at:] + body
    found = remembering(request(b"abc")).find(changed)
    assert found is None or changed == HEAD.replace(b"%d", changed.split(b"Length: ")[1].split(b"\r")[0]) + found[1]


def test_memory_is_bounded() -> None:
    """By the number of heads, the oldest of which goes first, and by their size."""
    heads: Heads[int] = Heads()
    for number in range(MOST_HEADS + 1):
        heads.remember(request(b"abc", HEAD.replace(b"/a", b"/%d" % number)), number)
    assert len(heads) == MOST_HEADS
    assert heads.find(request(b"", HEAD.replace(b"/a", b"/0"))) is None
    assert heads.find(request(b"", HEAD.replace(b"/a", b"/%d" % MOST_HEADS))) == (MOST_HEADS, b"")
    long = HEAD.replace(b"z", b"z" * LONGEST_HEAD)
    assert remembering(request(b"abc", long)).find(request(b"abc", long)) is None
