"""service.labels: a label is read as it is meant, and whatever else is sent is refused, at a bounded cost."""

import json
import time
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import BadParameter, MalformedRequest, Problem
from service.labels import MOST_BYTES, MOST_ITEMS, Body, Told, parse

GOOD = {"request_id": "5c0a5ab8", "label": "7", "sampling": "random"}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.sampled_from(["random", "7"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*GOOD, "index", "feedback", "other"]) | st.text(max_size=5), inner)
    ),
    max_leaves=12,
)


def read(document: Any) -> Body:
    return parse(json.dumps(document).encode())


def test_one_label() -> None:
    """Of the first image unless told; its members in any order."""
    assert read(GOOD) == Body([Told("5c0a5ab8", "7", "random", 0)], False)
    turned = {"index": 3, "sampling": "selected", "label": "cat", "request_id": "a._-Z"}
    assert read(turned) == Body([Told("a._-Z", "cat", "selected", 3)], False)


def test_several_labels_keep_their_order() -> None:
    """A list of one is a list, too, and what is wrong with one costs no other."""
    body = read({"feedback": [GOOD, {**GOOD, "label": 7}, {**GOOD, "index": 1}]})
    first, wrong, last = body.items
    assert body.several
    assert (first, last) == (Told("5c0a5ab8", "7", "random"), Told("5c0a5ab8", "7", "random", 1))
    assert isinstance(wrong, BadParameter)
    assert read({"feedback": [GOOD]}).several


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b'"7"',
        b"{",
        b'{"request_id": "a"',
        b"{'label': '7'}",
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        b'{"label": "\xff"}',
        json.dumps(GOOD).encode() + b"{}",
        b'{"label": "7", "label": "8", "request_id": "a", "sampling": "random"}',
        b'{"feedback": [{"label": "7", "label": "7", "request_id": "a", "sampling": "random"}]}',
        b'{"index": NaN}',
        b'{"index": -Infinity}',
        b'{"index": ' + b"9" * 5000 + b"}",
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        b"[" * 100_000,
    ],
    ids=lambda content: content[:16],
)
def test_what_is_no_such_json_is_malformed(content: bytes) -> None:
    """Told so with status 400, whatever it is."""
    with pytest.raises(MalformedRequest) as refusal:
        parse(content)
    assert len(refusal.value.detail) < 200


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"label": None}, "'label' is a label"),
        ({"label": 7}, "'label' is a label"),
        ({"label": "x" * 257}, "'label' is a label"),
        ({"request_id": ""}, "'request_id' is what"),
        ({"request_id": "a b"}, "'request_id' is what"),
        ({"request_id": "a\n"}, "'request_id' is what"),
        ({"request_id": "é"}, "'request_id' is what"),
        ({"request_id": "\ud800"}, "'request_id' is what"),
        ({"request_id": "a" * 129}, "'request_id' is what"),
        ({"request_id": 1}, "'request_id' is what"),
        ({"sampling": "all"}, "'sampling' is one of 'random', 'selected'"),
        ({"sampling": ["random"]}, "'sampling' is one of"),
        ({"sampling": {}}, "'sampling' is one of"),
        ({"index": -1}, "'index' is the place"),
        ({"index": True}, "'index' is the place"),
        ({"index": 1.0}, "'index' is the place"),
        ({"index": "0"}, "'index' is the place"),
        ({"index": None}, "'index' is the place"),
        ({"index": 2**31}, "'index' is the place"),
        ({"model": "digits"}, "there is no member 'model'; an object has request_id, label, sampling and may have"),
        ({"\ud800": 1}, "there is no member"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_named_with_the_remedy(change: dict[str, Any], reason: str) -> None:
    """Alone it is refused, in a list it stands for itself; what is said can be sent."""
    with pytest.raises(BadParameter, match=reason) as refusal:
        read({**GOOD, **change})
    json.dumps(refusal.value.document("id")).encode()
    (found,) = read({"feedback": [{**GOOD, **change}]}).items
    assert isinstance(found, BadParameter)
    assert found.detail == refusal.value.detail


@pytest.mark.parametrize("missing", sorted(GOOD))
def test_all_but_the_index_must_be_told(missing: str) -> None:
    """Nothing is taken for granted about a label."""
    with pytest.raises(BadParameter, match=f"'{missing}' is missing"):
        read({name: value for name, value in GOOD.items() if name != missing})


@pytest.mark.parametrize("items", [[], [GOOD] * (MOST_ITEMS + 1), {}, None, "x"], ids=lambda items: str(items)[:9])
def test_a_list_has_one_to_a_thousand(items: Any) -> None:
    """Neither none nor any number."""
    with pytest.raises(BadParameter, match="'feedback' is a list of 1 to 1,000 objects"):
        read({"feedback": items})
    assert len(read({"feedback": [GOOD] * MOST_ITEMS}).items) == MOST_ITEMS


def test_nothing_stands_beside_a_list() -> None:
    """It would say nothing of any of its labels."""
    with pytest.raises(BadParameter, match="nothing may stand beside it"):
        read({"feedback": [GOOD], **GOOD})


@given(JSON)
def test_any_json_is_read_or_refused(document: Any) -> None:
    """By a Problem, and by nothing else."""
    with suppress(MalformedRequest, BadParameter):
        assert all(isinstance(item, Told | Problem) for item in read(document).items)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    """The same."""
    with pytest.raises(Problem):
        parse(content)


@pytest.mark.parametrize(
    "content",
    [
        b'{"feedback":[' + b",".join([json.dumps(GOOD).encode()] * 2800) + b"]}",
        b'{"feedback":[' + b"{}," * 85_000 + b"{}]}",
        b'{"a":' * 50_000,
        b'{"' + b"a" * (MOST_BYTES - 10),
        b"{" + b",".join(b'"%d":0' % number for number in range(27_000)) + b"}",
    ],
    ids=["long list", "empty objects", "deep", "one string", "many members"],
)
def test_the_worst_body_holds_nobody_up(content: bytes) -> None:
    """Of the greatest length that is read it takes some milliseconds; 0.1 s is beyond doubt."""
    assert len(content) <= 1.1 * MOST_BYTES
    started = time.process_time()
    with pytest.raises(Problem):
        parse(content)
    assert time.process_time() - started < 0.1
