"""Answers as arrays: the compact form of many, `application/vnd.trueodds.predictions`, for whoever asks for it.

    "TOP1"            4 bytes
    length            uint32, of the header
    header            JSON in UTF-8, spaces at its end: `arrays` tells name, dtype, shape and offset of each array
    arrays            little-endian, in C order, each at a multiple of 8 bytes from the start

An offset counts from the header's end. Types are written as numpy does: `<f4` is float32, `|u1` a byte.
For N images and C classes:

    probabilities     <f4 (N, C)  calibrated, in the order of the header's `labels`
    energy            <f4 (N,)    in nats, higher is stranger
    ood_score         <f4 (N,)    what is_ood goes by, higher is stranger
    prediction_set    |u1 (N, C)  1 for a label in the set
    is_ood            |u1 (N,)    1 where the calibration does not hold
    abstain           |u1 (N,)    1 where a person should look
    failed            |u1 (N,)    1 for a file at fault; `errors` has its problem document by its index
    logits            <f4 (N, C)  uncalibrated, if asked for

Of a failed file all numbers are NaN, the set is empty and `abstain` is 1.
"""

import json
import re
import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from service.answers import Answers, Options, Row, constants
from service.bundle import Bundle
from service.errors import NotAcceptable, Problem

MEDIA_TYPE = b"application/vnd.trueodds.predictions"
JSON = b"application/json"

MAGIC = b"TOP1"
ALIGNMENT = 8

# RFC 9110, section 12.5.1. Possessive (++, *+), lest a hostile header takes long to refuse.
TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
QUOTED = rb'"(?:[^"\\]|\\.)*+"'
PARAMETER = re.compile(rb"(%b)=(%b|%b)" % (TOKEN, TOKEN, QUOTED))
RANGE = re.compile(rb"\s*+(%b/%b)((?:\s*+;\s*+(?:%b)?)*+)\s*+" % (TOKEN, TOKEN, PARAMETER.pattern))
ELEMENT = re.compile(rb'(?:[^,"]|%b|".*+)++' % QUOTED, re.DOTALL)
WEIGHT = re.compile(rb"0(?:\.\d{0,3})?|1(?:\.0{0,3})?")

Array = npt.NDArray[Any]


class BinaryAnswers:
    """Turns a model's answers into one body. All that is the same in every header is JSON already."""

    def __init__(self, bundle: Bundle, answers: Answers) -> None:
        self._classes = len(bundle.manifest.labels)
        self._answers = answers
        self._headers = {
            coverage: orjson.dumps({**constants(bundle, coverage), "labels": bundle.manifest.labels})[:-1]
            for coverage in (None, *bundle.coverages)
        }

    def encode(self, outcomes: Sequence[Row | Problem], options: Options, request_id: str) -> bytes:
        """N images' answers, or what is wrong with each → the body. top_k does not matter: every class is told."""
        arrays = self._arrays(outcomes, options.coverage)
        if not options.logits:
            del arrays["logits"]
        errors = {str(i): item.document(request_id) for i, item in enumerate(outcomes) if isinstance(item, Problem)}
        own = {"request_id": request_id, "n": len(outcomes), "classes": self._classes, "errors": errors}
        header = b"%b,%b" % (self._headers[options.coverage], orjson.dumps({**own, "arrays": _places(arrays)})[1:])
        header += b" " * (-len(header) % ALIGNMENT)
        parts = [MAGIC, struct.pack("<I", len(header)), header]
        for array in arrays.values():
            data = array.tobytes()
            parts += (data, bytes(-len(data) % ALIGNMENT))
        return b"".join(parts)

    def _arrays(self, outcomes: Sequence[Row | Problem], coverage: float | None) -> dict[str, Array]:
        n, classes = len(outcomes), self._classes
        rows = {i: outcome for i, outcome in enumerate(outcomes) if not isinstance(outcome, Problem)}
        sound = list(rows)
        numbers = np.full((n, 2 + 3 * classes), np.nan, "<f4")
        probabilities = np.full((n, classes), np.nan, "<f4")
        members = np.zeros((n, classes), "|u1")
        is_ood, abstain, failed = flags = np.zeros((3, n), "|u1")
        flags[1:] = 1
        if rows:
            numbers[sound] = np.concatenate([row.numbers for row in rows.values()]).reshape(len(sound), -1)
            order = np.concatenate([row.order for row in rows.values()]).reshape(len(sound), -1)
            probabilities[np.array(sound)[:, None], order] = numbers[sound, 1 : 1 + 2 * classes : 2]
            sets = b"".join([self._answers.members(row, coverage) for row in rows.values()])
            members[sound] = np.frombuffer(sets, "|u1").reshape(-1, classes)
            is_ood[sound] = [row.is_ood for row in rows.values()]
            abstain[sound] = [row.abstain for row in rows.values()]
            failed[sound] = 0
        return {
            "probabilities": probabilities,
            "energy": numbers[:, -1],
            "ood_score": numbers[:, 0],
            "prediction_set": members,
            "is_ood": is_ood,
            "abstain": abstain,
            "failed": failed,
            "logits": numbers[:, 1 + 2 * classes : -1],
        }


def decode(body: bytes) -> dict[str, Any]:
    """A body of this type → its header, with `arrays` an array by name. Needs numpy only: copy it."""
    if body[:4] != b"TOP1":
        raise ValueError("this is no answer of type application/vnd.trueodds.predictions")
    start = 8 + int.from_bytes(body[4:8], "little")
    header: dict[str, Any] = json.loads(body[8:start])
    arrays = {}
    for entry in header["arrays"]:
        dtype, shape = np.dtype(entry["dtype"]), tuple(entry["shape"])
        size = int(np.prod(shape))
        arrays[entry["name"]] = np.frombuffer(body, dtype, size, start + entry["offset"]).reshape(shape)
    return {**header, "arrays": arrays}


# A service meets few different headers, and reading one takes longer than encoding an answer.
@lru_cache(maxsize=64)
def wanted(accept: bytes) -> bool:
    """Whether an Accept header (RFC 9110, section 12.5.1), empty for none, asks for this type rather than JSON.

    At equal weights the type that is named goes before one that a wildcard lets in, and JSON before this.
    Raises NotAcceptable if it takes neither.
    """
    weights = _weights(accept)
    binary, plain = _preference(weights, MEDIA_TYPE), _preference(weights, JSON)
    # A header in which nothing can be read is as good as none.
    if weights and not (binary[0] or plain[0]):
        raise NotAcceptable(f"There are answers of type {JSON.decode()} and {MEDIA_TYPE.decode()}; accept one of them.")
    return binary > plain


def _preference(weights: dict[bytes, float], media_type: bytes) -> tuple[float, int]:
    """The weight of the most specific range a type falls into, and how specific that is."""
    for specificity, name in ((2, media_type), (1, b"application/*"), (0, b"*/*")):
        if name in weights:
            return weights[name], specificity
    return 0, 0


def _weights(accept: bytes) -> dict[bytes, float]:
    """The weight of each media range, in small letters. Other parameters do not count; what is no range is left out."""
    found: dict[bytes, float] = {}
    for element in map(RANGE.fullmatch, ELEMENT.findall(accept)):
        if element is None:
            continue
        name = element[1].lower()
        weight = {key.lower(): value for key, value in PARAMETER.findall(element[2])}.get(b"q", b"1")
        if WEIGHT.fullmatch(weight):
            found[name] = max(found.get(name, 0), float(weight))
    return found


def _places(arrays: dict[str, Array]) -> list[dict[str, Any]]:
    places, offset = [], 0
    for name, array in arrays.items():
        places.append({"name": name, "dtype": array.dtype.str, "shape": array.shape, "offset": offset})
        offset += array.nbytes + -array.nbytes % ALIGNMENT
    return places
