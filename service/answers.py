"""What a client reads: outputs of the graph → the JSON result objects of a response.

`rows` does what is cheaper for a whole batch at once, `encode` what depends on a request. Everything that is the same
in every answer of a model is JSON already.
"""

from dataclasses import dataclass
from itertools import compress, repeat
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

from service.backends import Floats, Outputs
from service.bundle import Bundle

# Predictions that become text at once, though not all of their clients may ask for them.
SHOWN_AT_ONCE = 1024

# An image's best classes and, as JSON, its energy and then the calibrated and the uncalibrated probability of each.
Shown = tuple[list[int], list[bytes]]


@dataclass(frozen=True)
class Options:
    """What a client may ask for. top_k None means every class."""

    top_k: int | None = 3
    logits: bool = False


class Row(NamedTuple):
    """One image's answer before a request's options and id are known.

    order (C,): the classes, best first. numbers (1 + 3 C,) float32: the energy; the calibrated and the uncalibrated
    probability of each class in that order; the logits in the order of the labels. members (C,): 1 for a class in the
    prediction set, else 0.
    """

    order: npt.NDArray[np.intp]
    numbers: Floats
    members: bytes
    is_ood: bool
    # The batch it is of, and where it stands there.
    table: "Table | None" = None
    place: int = 0

    @property
    def abstain(self) -> bool:
        """More than one label is possible, or the promise does not hold for such an image: let a person look."""
        return self.is_ood or self.members.count(1) > 1

    def alone(self) -> "Row":
        """The same, without keeping the arrays of its whole batch in memory."""
        return Row(self.order.copy(), self.numbers.copy(), self.members, self.is_ood)

    def shown(self, top_k: int | None) -> "Shown":
        if self.table is None:
            return _shown(self.order[None], self.numbers[None], top_k)[0]
        return self.table.shown(self.place, top_k)


class Table:
    """The orders and numbers of a batch's rows, which become text together: most of them are asked for the same."""

    __slots__ = ("_numbers", "_order", "_shown")

    def __init__(self, order: npt.NDArray[np.intp], numbers: Floats) -> None:
        self._order = order
        self._numbers = numbers
        self._shown: dict[int | None, list[Shown]] = {}

    def shown(self, place: int, top_k: int | None) -> "Shown":
        """What the row at this place shows."""
        rows = self._shown.get(top_k)
        if rows is None:
            n, classes = self._order.shape
            if n * min(top_k or classes, classes) > SHOWN_AT_ONCE:
                return _shown(self._order[place : place + 1], self._numbers[place : place + 1], top_k)[0]
            rows = self._shown[top_k] = _shown(self._order, self._numbers, top_k)
        return rows[place]


def constants(bundle: Bundle) -> dict[str, dict[str, Any]]:
    """What a bundle's every answer says, by the answer's members."""
    manifest, calibration = bundle.manifest, bundle.calibration
    return {
        "model": {"name": manifest.name, "version": manifest.version, "sha256": bundle.sha256},
        "prediction_set": {"coverage": round(1 - calibration.conformal[0].alpha, 6), "method": "lac"},
        "ood": {"method": calibration.ood.method, "threshold": calibration.ood.threshold},
        "calibration": {
            "id": calibration.id,
            "method": calibration.method,
            "ece_15": calibration.metrics.after.ece_15,
            "ece_null_p99": calibration.metrics.null.ece_15_p99,
            "n_fit": calibration.data["fit"].n,
        },
    }


class Answers:
    """Turns a model's outputs into result objects."""

    def __init__(self, bundle: Bundle) -> None:
        same = constants(bundle)
        self._labels = [orjson.dumps(label) for label in bundle.manifest.labels]
        self._predictions = [
            b'{"label":%b,"class_index":%d,"probability":' % (label, k) for k, label in enumerate(self._labels)
        ]
        self._after_id = b'","model":%b,"predictions":[' % orjson.dumps(same["model"])
        self._after_labels = b"]," + _members(same["prediction_set"])
        # An image in distribution with one possible label: nearly all of them.
        self._singletons = [self._prediction_set(label, abstain=False) for label in self._labels]
        calibration = _members(same["calibration"])
        self._after_score = [
            b',"is_ood":%b,%b,"calibration":{%b,"valid_for":%b}'
            % (is_ood, _members(same["ood"]) + b"}", calibration, valid_for)
            for is_ood, valid_for in ((b"false", b'"in_distribution"'), (b"true", b"null"))
        ]

    def rows(self, outputs: Outputs) -> list[Row]:
        """N images' outputs → N rows."""
        logits = outputs.logits
        n, classes = logits.shape
        # By logits: probabilities of the tail tie at 0.
        order = (-logits).argsort(axis=1, kind="stable")
        # Where each number stands in an array laid flat.
        place = order + np.arange(0, n * classes, classes)[:, None] if n > 1 else order
        # calibration.softmax to the last bit, in half its time: the largest logit is known.
        exponentials = np.exp(logits - logits.take(place[:, :1]))
        total = np.add.reduce(exponentials, axis=1, keepdims=True)
        numbers = np.empty((n, 1 + 3 * classes), np.float32)
        numbers[:, 0] = outputs.energy
        numbers[:, 1 : 1 + 2 * classes : 2] = outputs.probabilities.take(place)
        np.divide(exponentials.take(place), total, out=numbers[:, 2 : 1 + 2 * classes : 2])
        numbers[:, 1 + 2 * classes :] = logits
        data = outputs.prediction_set.tobytes()
        members = [data[start : start + classes] for start in range(0, n * classes, classes)]
        return list(map(Row, order, numbers, members, outputs.is_ood.tolist(), repeat(Table(order, numbers)), range(n)))

    def encode(self, row: Row, options: Options, request_id: str) -> bytes:
        """One image's result object. A number is the shortest text that reads back as the same float32."""
        classes, numbers = row.shown(options.top_k)
        # An id needs no escapes: requests.REQUEST_ID allows letters, digits, dots, dashes and underscores only.
        parts = [b'{"request_id":"', request_id.encode(), self._after_id]
        at = 1
        for k in classes:
            parts += (self._predictions[k], numbers[at], b',"uncalibrated_probability":', numbers[at + 1], b"},")
            at += 2
        # No comma after the last.
        parts[-1] = b"}"
        parts += (self._set_of(row), numbers[0], self._after_score[row.is_ood])
        parts.append(b',"logits":%b}' % _json(row.numbers[1 + 2 * len(row.order) :]) if options.logits else b"}")
        return b"".join(parts)

    def _set_of(self, row: Row) -> bytes:
        """The JSON from the predictions' end to the score."""
        if row.members.count(1) == 1 and not row.is_ood:
            return self._singletons[row.members.index(1)]
        return self._prediction_set(b",".join(compress(self._labels, row.members)), row.abstain)

    def _prediction_set(self, labels: bytes, abstain: bool) -> bytes:
        return b'],"prediction_set":{"labels":[%b%b},"abstain":%b,"ood":{"score":' % (
            labels,
            self._after_labels,
            b"true" if abstain else b"false",
        )


def _shown(order: npt.NDArray[np.intp], numbers: Floats, top_k: int | None) -> list[Shown]:
    """Of each row."""
    best = order[:, :top_k].tolist()
    texts = _json(np.ascontiguousarray(numbers[:, : 1 + 2 * len(best[0])]))[2:-2].split(b"],[")
    return [(classes, text.split(b",")) for classes, text in zip(best, texts, strict=True)]


def _json(numbers: Floats) -> bytes:
    return orjson.dumps(numbers, option=orjson.OPT_SERIALIZE_NUMPY)


def _members(document: dict[str, Any]) -> bytes:
    """A JSON object without its braces."""
    return orjson.dumps(document)[1:-1]
