"""Good questions: images, forms, tensors, and what is the right answer to each."""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
import orjson
from PIL import Image

from service.binary import MEDIA_TYPE, decode
from tests.abuse.wire import Answer
from tests.conftest import fixtures

MODELS = ("digits", "cifar10")
# An answer of one of them is told from another's by its energy, which batches of another size change by 1e-4.
APART, PROBABILITY_TOLERANCE, ENERGY_TOLERANCE = 0.01, 1e-4, 2e-3
SIDE, TENSOR_IMAGES = 32, 64
BOUNDARY = b"soak-boundary"

Verdict = str
RIGHT, MIXED_UP, REFUSED, WRONG = "right", "mixed up", "refused", "wrong"


class Truth(NamedTuple):
    """What one image is answered: the likeliest label, its probability in [0, 1] and the energy in nats."""

    label: str
    probability: float
    energy: float

    @classmethod
    def of(cls, result: dict[str, Any]) -> "Truth":
        first = result["predictions"][0]
        return cls(first["label"], first["probability"], result["ood"]["score"])

    def agrees(self, other: "Truth") -> bool:
        return (
            self.label == other.label
            and abs(self.probability - other.probability) <= PROBABILITY_TOLERANCE
            and abs(self.energy - other.energy) <= ENERGY_TOLERANCE
        )


class Item(NamedTuple):
    """An image file and its answer."""

    body: bytes
    content_type: bytes
    truth: Truth


@dataclass(frozen=True)
class Asked:
    """One request as it is sent, and the judge of its answer."""

    kind: str
    data: bytes
    judge: Callable[[Answer], Verdict]


@dataclass(frozen=True)
class Library:
    """A model's images, no two of which are answered alike, and a tensor's: its bytes an image, and their answers."""

    model: str
    items: Sequence[Item]
    rows: Sequence[bytes]
    truths: Sequence[Truth]


def head(path: str, headers: Iterable[bytes], body: bytes) -> bytes:
    lines = b"".join(b"%b\r\n" % line for line in headers)
    return b"POST %b HTTP/1.1\r\nHost: soak\r\n%bContent-Length: %d\r\n\r\n" % (path.encode(), lines, len(body))


def classify(model: str) -> str:
    return f"/v1/models/{model}/classify"


def variants(model: str) -> list[tuple[bytes, bytes]]:
    """The fixtures, each turned, mirrored and written in other formats: bodies and their types."""
    found = []
    for content, _ in fixtures(model):
        picture = Image.open(BytesIO(content)).convert("RGB")
        mirrored = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        upended = picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
        found.append((content, b"image/png"))
        for one, kind in ((mirrored, "webp"), (upended, "bmp"), (picture.transpose(Image.Transpose.ROTATE_90), "jpeg")):
            found.append((_written(one, kind), b"image/" + kind.encode()))
    return found


def _written(picture: Image.Image, kind: str) -> bytes:
    file = BytesIO()
    picture.save(file, kind, **({"lossless": True} if kind == "webp" else {}))
    return file.getvalue()


def tensor_rows(model: str) -> list[bytes]:
    """Network-sized pixels of pictures, which for digits make no sense but are answered all the same."""
    pictures = (Image.open(BytesIO(content)).convert("RGB") for content, _ in fixtures(model)[:TENSOR_IMAGES])
    return [picture.resize((SIDE, SIDE)).tobytes() for picture in pictures]


def npy(rows: Sequence[bytes]) -> bytes:
    file = BytesIO()
    np.save(file, np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), SIDE, SIDE, 3))
    return file.getvalue()


def form(items: Sequence[Item]) -> bytes:
    parts = [
        b'--%b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\nContent-Type: %b\r\n\r\n%b\r\n'
        % (BOUNDARY, item.content_type, item.body)
        for item in items
    ]
    return b"".join(parts) + b"--%b--\r\n" % BOUNDARY


def tell_apart(items: Iterable[Item]) -> list[Item]:
    """Those of them of which no two have an energy less than APART apart."""
    kept: list[Item] = []
    for item in sorted(items, key=lambda item: item.truth.energy):
        if not kept or item.truth.energy - kept[-1].truth.energy >= APART:
            kept.append(item)
    return kept


class Judge:
    """Knows the answers that are right, and under which id."""

    __slots__ = ("_request_id", "_truths")

    def __init__(self, truths: Sequence[Truth], request_id: bytes = b"") -> None:
        self._truths = truths
        self._request_id = request_id

    def one(self, answer: Answer) -> Verdict:
        return self._verdict(answer, lambda body: [orjson.loads(body)])

    def several(self, answer: Answer) -> Verdict:
        return self._verdict(answer, lambda body: orjson.loads(body)["results"])

    def arrays(self, answer: Answer) -> Verdict:
        return self._verdict(answer, _results)

    def _verdict(self, answer: Answer, results: Callable[[bytes], list[dict[str, Any]]]) -> Verdict:
        if answer.status == 503 and answer.header(b"retry-after"):
            return REFUSED
        if answer.status != 200:
            return WRONG
        given = results(answer.body)
        request_id = answer.header(b"x-request-id")
        if not request_id or (self._request_id and request_id != self._request_id):
            return MIXED_UP
        if any(result["request_id"].encode() != request_id for result in given):
            return MIXED_UP
        if len(given) != len(self._truths):
            return MIXED_UP
        agreed = all(Truth.of(result).agrees(truth) for result, truth in zip(given, self._truths, strict=True))
        return RIGHT if agreed else MIXED_UP


def _results(body: bytes) -> list[dict[str, Any]]:
    """Binary answers as JSON has them, as far as is looked at."""
    told = decode(body)
    arrays = told["arrays"]
    return [
        {
            "request_id": told["request_id"],
            "predictions": [{"label": told["labels"][int(row.argmax())], "probability": float(row.max())}],
            "ood": {"score": float(score)},
        }
        for row, score in zip(arrays["probabilities"], arrays["ood_score"], strict=True)
    ]


class Questions:
    """Asks what can be answered: each time another image, now and then another way."""

    def __init__(self, libraries: Sequence[Library], chance: random.Random) -> None:
        self._libraries = libraries
        self._chance = chance
        self._number = 0

    def new_id(self) -> bytes:
        self._number += 1
        return b"soak-%d" % self._number

    def single(self, library: Library, own_id: bytes) -> Asked:
        """Under one id a connection, which is the short way through the service, or under an id of its own."""
        chance = self._chance
        item = chance.choice(library.items)
        request_id = own_id if chance.random() < 0.5 else self.new_id()
        headers = [b"Content-Type: " + item.content_type, b"X-Request-Id: " + request_id]
        data = head(classify(library.model), headers, item.body) + item.body
        return Asked(f"{library.model} image", data, Judge([item.truth], request_id).one)

    def arrays(self, library: Library, own_id: bytes) -> Asked:
        item, request_id = self._chance.choice(library.items), self.new_id()
        headers = [b"Content-Type: image/png", b"Accept: " + MEDIA_TYPE, b"X-Request-Id: " + request_id]
        data = head(classify(library.model), headers, item.body) + item.body
        return Asked(f"{library.model} image, answered in binary", data, Judge([item.truth], request_id).arrays)

    def form(self, library: Library, own_id: bytes) -> Asked:
        items, request_id = self._chance.choices(library.items, k=self._chance.randint(2, 8)), self.new_id()
        body = form(items)
        headers = [b"Content-Type: multipart/form-data; boundary=" + BOUNDARY, b"X-Request-Id: " + request_id]
        judge = Judge([item.truth for item in items], request_id)
        return Asked(f"{library.model} form", head(classify(library.model), headers, body) + body, judge.several)

    def tensor(self, library: Library, own_id: bytes) -> Asked:
        chance, request_id = self._chance, self.new_id()
        picked = chance.choices(range(len(library.rows)), k=chance.randint(1, 32))
        body = npy([library.rows[i] for i in picked])
        headers = [b"Content-Type: application/x-npy", b"X-Request-Id: " + request_id]
        judge = Judge([library.truths[i] for i in picked], request_id)
        return Asked(f"{library.model} tensor", head(classify(library.model), headers, body) + body, judge.several)

    def page(self, library: Library, own_id: bytes) -> Asked:
        path = self._chance.choice(["/v1/models", f"/v1/models/{library.model}", "/livez", "/readyz", "/metrics", "/"])
        request_id = self.new_id()

        def judge(answer: Answer) -> Verdict:
            if answer.status != 200:
                return WRONG
            return RIGHT if answer.header(b"x-request-id") == request_id else MIXED_UP

        request = b"GET %b HTTP/1.1\r\nHost: soak\r\nX-Request-Id: %b\r\n\r\n" % (path.encode(), request_id)
        return Asked("page", request, judge)

    def next(self, own_id: bytes) -> Asked:
        """`own_id` is the one that belongs to the connection."""
        chance = self._chance
        library = self._libraries[chance.random() < 0.3]
        (ask,) = chance.choices((self.single, self.arrays, self.form, self.tensor, self.page), (84, 5, 5, 4, 2))
        return ask(library, own_id)
