"""What a client says that an image shows: the body of POST /v1/feedback, read strictly.

{"request_id": "5c0a…", "label": "7", "sampling": "random", "index": 0}
{"feedback": [{"request_id": …}, …]}
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from service.errors import BadParameter, MalformedRequest, Problem
from service.requests import REQUEST_ID
from service.stores import Sampling

# Of one request: items, and bytes.
MOST_ITEMS, MOST_BYTES = 1000, 256 * 1024
LONGEST_LABEL, LARGEST_INDEX = 256, 2**31 - 1
SAMPLINGS = get_args(Sampling)
REQUIRED, OPTIONAL = ("request_id", "label", "sampling"), ("index",)


@dataclass(frozen=True)
class Told:
    """One label. `index` is that of the image within its request."""

    request_id: str
    label: str
    sampling: Sampling
    index: int = 0


@dataclass(frozen=True)
class Body:
    """Labels, or what is wrong with each. `several` tells that the answer is a list, though of one."""

    items: Sequence[Told | Problem]
    several: bool


def parse(body: bytes) -> Body:
    """Raises MalformedRequest for what is no JSON object, BadParameter for another one than is meant."""
    document = _object(body)
    if "feedback" not in document:
        return Body([_told(document)], False)
    items = document["feedback"]
    if len(document) > 1 or not isinstance(items, list) or not 1 <= len(items) <= MOST_ITEMS:
        raise BadParameter(f"'feedback' is a list of 1 to {MOST_ITEMS:,} objects, and nothing may stand beside it.")
    return Body([_told_or_problem(item) for item in items], True)


def _object(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body.decode(), object_pairs_hook=_members, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        # What Python says of it may quote much of the body.
        told = str(error) if isinstance(error, json.JSONDecodeError | _Twice) else "it is not"
        raise MalformedRequest(f"The body is to be JSON in UTF-8: {told}.") from None
    if not isinstance(document, dict):
        raise MalformedRequest("The body is to be a JSON object.")
    return document


class _Twice(ValueError):
    """An object has two members of one name."""


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise _Twice("a member is given twice")
    return members


def _no_number(text: str) -> Any:
    raise ValueError


def _told_or_problem(item: Any) -> Told | Problem:
    try:
        return _told(item)
    except Problem as problem:
        return problem


def _told(item: Any) -> Told:
    """Raises BadParameter."""
    if not isinstance(item, dict):
        raise BadParameter("A label is told by a JSON object.")
    missing = [name for name in REQUIRED if name not in item]
    unknown = item.keys() - {*REQUIRED, *OPTIONAL}
    if missing or unknown:
        which = f"{missing[0]!r} is missing" if missing else f"there is no member {min(unknown)[:64]!r}"
        raise BadParameter(f"{which}; an object has {', '.join(REQUIRED)} and may have {', '.join(OPTIONAL)}.")
    request_id, label, sampling, index = (item.get(name, 0) for name in (*REQUIRED, *OPTIONAL))
    if not (isinstance(request_id, str) and request_id.isascii() and REQUEST_ID.fullmatch(request_id.encode())):
        raise BadParameter("'request_id' is what the answer tells: letters, digits, '.', '_' and '-', at most 128.")
    if not (isinstance(label, str) and len(label) <= LONGEST_LABEL):
        raise BadParameter(f"'label' is a label of the model, a string of at most {LONGEST_LABEL} characters.")
    if sampling not in SAMPLINGS:
        raise BadParameter(f"'sampling' is one of {', '.join(map(repr, SAMPLINGS))}.")
    if type(index) is not int or not 0 <= index <= LARGEST_INDEX:
        raise BadParameter("'index' is the place of the image in its request, from 0 on.")
    return Told(request_id, label, sampling, index)
