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

# An image's best classes and, as JSON, its score and then the calibrated and the uncalibrated probability of each.
Shown = tuple[list[int], list[bytes]]


@dataclass(frozen=True)
class Options:
    """What a client may ask for. top_k None means every class, coverage None the model's own."""

    top_k: int | None = 3
    logits: bool = False
    coverage: float | None = None
    explain: bool = False


class Row(NamedTuple):
    """One image's answer before a request's options and id are known.

    order (C,): the classes, best first. numbers (2 + 3 C,) float32: the score of strangeness; the calibrated and the
    uncalibrated probability of each class in that order; the logits in the order of the labels; the energy.
    members (C,): 1 for a class in the prediction set of the model's own coverage, else 0. abstain: the promise does not
    hold for such an image, or the model is not sure enough: let a person look.
    """

    order: npt.NDArray[np.intp]
    numbers: Floats
    members: bytes
    is_ood: bool
    abstain: bool
    # The batch it is of, and where it stands there.
    table: "Table | None" = None
    place: int = 0

    def alone(self) -> "Row":
        """The same, without keeping the arrays of its whole batch in memory."""
        return Row(self.order.copy(), self.numbers.copy(), self.members, self.is_ood, self.abstain)

    def at(self, threshold: float) -> bytes:
        """The members of a set of all classes that are at least so probable, and of the likeliest."""
        likely = self.numbers[1 : 1 + 2 * len(self.order) : 2] >= np.float32(threshold)
        likely[0] = True
        members = np.zeros(len(self.order), np.uint8)
        members[self.order[likely]] = 1
        return members.tobytes()

    def probability(self, index: int) -> float:
        """Of the class of this index, calibrated."""
        return float(self.numbers[1 + 2 * int((self.order == index).argmax())])

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


def constants(bundle: Bundle, coverage: float | None = None) -> dict[str, dict[str, Any]]:
    """What a bundle's every answer says, by the answer's members; `coverage` as in Options."""
    manifest, calibration = bundle.manifest, bundle.calibration
    model = {"name": manifest.name, "version": manifest.version, "sha256": bundle.sha256}
    if calibration is None:
        return {"model": model, **UNCALIBRATED}
    return {
        "model": model,
        "prediction_set": {"coverage": coverage or calibration.conformal[0].coverage, "method": "lac"},
        "ood": {"method": calibration.ood.method, "threshold": calibration.ood.threshold},
        "calibration": {
            "id": calibration.id,
            "method": calibration.method,
            "ece_15": calibration.metrics.after.ece_15,
            "ece_null_p99": calibration.metrics.null.ece_15_p99,
            "n_fit": calibration.data["fit"].n,
        },
    }


# Of a model that was never calibrated: nothing it answers is a promise.
UNCALIBRATED: dict[str, dict[str, Any]] = {
    "prediction_set": {"coverage": None, "method": "none"},
    "ood": {"method": "none", "threshold": None},
    "calibration": {"id": None, "method": "none", "ece_15": None, "ece_null_p99": None, "n_fit": 0},
}


class Answers:
    """Turns a model's outputs into result objects."""

    def __init__(self, bundle: Bundle) -> None:
        same, found = constants(bundle), bundle.calibration
        self._labels = [orjson.dumps(label) for label in bundle.manifest.labels]
        self._predictions = [
            b'{"label":%b,"class_index":%d,"probability":' % (label, k) for k, label in enumerate(self._labels)
        ]
        self._after_id = b'","model":%b,"predictions":[' % orjson.dumps(same["model"])
        # Whoever is not calibrated is never sure enough.
        self._sure_from = np.float32(found.abstention.threshold if found else np.inf)
        self._levels = {level.coverage: level.threshold for level in found.conformal} if found else {}
        self._after_labels = {
            coverage: b"]," + _members(constants(bundle, coverage)["prediction_set"])
            for coverage in (None, *bundle.coverages)
        }
        # An image of which the model is sure enough, with one possible label: nearly all of them.
        self._singletons = [self._prediction_set(label, None, abstain=False) for label in self._labels]
        calibration = _members(same["calibration"])
        in_distribution = b'"in_distribution"' if found else b"null"
        self._after_score = [
            b',"is_ood":%b,%b,"calibration":{%b,"valid_for":%b}'
            % (is_ood, _members(same["ood"]) + b"}", calibration, valid_for)
            for is_ood, valid_for in ((b"false", in_distribution), (b"true", b"null"))
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
        numbers = np.empty((n, 2 + 3 * classes), np.float32)
        numbers[:, 0] = outputs.ood_score
        numbers[:, 1 : 1 + 2 * classes : 2] = probabilities = outputs.probabilities.take(place)
        np.divide(exponentials.take(place), total, out=numbers[:, 2 : 1 + 2 * classes : 2])
        numbers[:, 1 + 2 * classes : -1] = logits
        numbers[:, -1] = outputs.energy
        abstain = outputs.is_ood | (probabilities[:, 0] < self._sure_from)
        data = outputs.prediction_set.tobytes()
        members = [data[start : start + classes] for start in range(0, n * classes, classes)]
        flags = outputs.is_ood.tolist(), abstain.tolist()
        return list(map(Row, order, numbers, members, *flags, repeat(Table(order, numbers)), range(n)))

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
        parts += (self._set_of(row, options.coverage), numbers[0], self._after_score[row.is_ood])
        parts.append(b',"logits":%b}' % _json(row.numbers[1 + 2 * len(row.order) : -1]) if options.logits else b"}")
        return b"".join(parts)

    def members(self, row: Row, coverage: float | None) -> bytes:
        """Of the prediction set of such a coverage, one of those offered: 1 for each class in it, else 0."""
        return row.members if coverage is None else row.at(self._levels[coverage])

    def _set_of(self, row: Row, coverage: float | None) -> bytes:
        """The JSON from the predictions' end to the score."""
        if coverage is None and not row.abstain and row.members.count(1) == 1:
            return self._singletons[row.members.index(1)]
        labels = b",".join(compress(self._labels, self.members(row, coverage)))
        return self._prediction_set(labels, coverage, row.abstain)

    def _prediction_set(self, labels: bytes, coverage: float | None, abstain: bool) -> bytes:
        return b'],"prediction_set":{"labels":[%b%b},"abstain":%b,"ood":{"score":' % (
            labels,
            self._after_labels[coverage],
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
