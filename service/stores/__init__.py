"""Where labels are kept: one file for each kind of store, chosen by the scheme of a URL.

What a store does with labels is the same in all of them and is decided by `settle`; a store reads, writes what `settle`
says, in one transaction, and forgets the oldest.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple, Protocol
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from service.drift import Tally
from service.errors import SettingError
from service.memory import Remembered

Sampling = Literal["random", "selected"]
# Of what is in a store. One that finds another says so and touches nothing.
SCHEMA = 1


class StoreError(Exception):
    """The store cannot be used just now; the message is for the log, and holds no secret."""


@dataclass(frozen=True)
class Label:
    """What somebody says an image shows, by the request and the index in it. `answer`: what was said, if remembered."""

    request_id: str
    index: int
    label: str
    sampling: Sampling
    answer: Remembered | None


class Kept(NamedTuple):
    """What is kept of a label, as far as another for the same answer is compared with it."""

    model: str
    calibration: str
    label: str
    sampling: str


@dataclass(frozen=True)
class Outcome:
    """What became of a label: recorded now; or else `kept` is what was there before, or None for an unknown answer."""

    recorded: bool
    kept: Kept | None


# By request id and index, the oldest first.
Known = dict[tuple[str, int], list[Kept]]
# By model and calibration id.
Tallies = dict[tuple[str, str], Tally]
Row = tuple[Any, ...]


@dataclass
class Settled:
    """What is to be written, and the outcome of each label in order. `tallies` are those that have changed."""

    outcomes: list[Outcome] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    tallies: Tallies = field(default_factory=dict)


@dataclass(frozen=True)
class LabelledAnswers:
    """Of N random answers in distribution: logits (N, C) float32, labels (N,) class indices, the id of the calibration
    that each was answered under (N,), and when, in seconds since 1970 (N,); in the order in which labels came.
    """

    logits: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    calibrations: npt.NDArray[np.str_]
    answered: npt.NDArray[np.float64]


class Store(Protocol):
    """Used by one thread. Every method raises StoreError, and works again when the store does."""

    def record(self, labels: Sequence[Label], now: float) -> list[Outcome]:
        """Durably, all or none. `now` is in seconds since 1970."""
        ...

    def tallies(self) -> Tallies:
        """Of every model and calibration."""
        ...

    def read(self, model: str) -> LabelledAnswers: ...

    def close(self) -> None: ...


def settle(labels: Iterable[Label], known: Known, tallies: Mapping[tuple[str, str], Tally], now: float) -> Settled:
    """The first label of an answer stays. `known` has all that is kept under the ids of `labels`."""
    settled = Settled()
    kept = {key: list(rows) for key, rows in known.items()}
    for label in labels:
        of_id = kept.setdefault((label.request_id, label.index), [])
        answer = label.answer
        before = [each for each in of_id if answer is None or each.model == answer.origin.model]
        if before or answer is None:
            settled.outcomes.append(Outcome(False, before[-1] if before else None))
            continue
        origin = answer.origin
        row = Kept(origin.model, origin.calibration, label.label, label.sampling)
        of_id.append(row)
        settled.outcomes.append(Outcome(True, row))
        settled.rows.append(_row(label, answer, now))
        of = (origin.model, origin.calibration)
        settled.tallies[of] = _counted(settled.tallies.get(of) or tallies.get(of) or Tally(), label, answer, now)
    return settled


def _row(label: Label, answer: Remembered, now: float) -> Row:
    """In the order in which stores insert it."""
    origin = answer.origin
    return (
        label.request_id,
        label.index,
        origin.model,
        origin.version,
        origin.calibration,
        answer.logits,
        answer.confidence,
        answer.predicted,
        _covered(label, answer),
        label.label,
        origin.labels.index(label.label),
        _correct(label, answer),
        answer.is_ood,
        label.sampling,
        answer.answered_ns / 1e9,
        now,
    )


def _counted(tally: Tally, label: Label, answer: Remembered, now: float) -> Tally:
    if answer.is_ood or label.sampling != "random":
        return tally.not_counted(strange=answer.is_ood)
    return tally.counted(answer.confidence, _correct(label, answer), _covered(label, answer), now)


def _correct(label: Label, answer: Remembered) -> bool:
    return answer.origin.labels[answer.predicted] == label.label


def _covered(label: Label, answer: Remembered) -> bool:
    return answer.members[answer.origin.labels.index(label.label)] == 1


def tally_text(tally: Tally) -> str:
    return json.dumps(asdict(tally))


def tally_of(text: str) -> Tally:
    told = json.loads(text)
    return Tally(**{**told, "bets": tuple(told["bets"])})


def labelled_answers(rows: Sequence[tuple[bytes, int, str, float]]) -> LabelledAnswers:
    """From logits, class index, calibration and time of each; of as many classes as the last one has."""
    rows = [row for row in rows if len(row[0]) == len(rows[-1][0])]
    logits, labels, calibrations, answered = zip(*rows, strict=True) if rows else ((), (), (), ())
    found = np.frombuffer(b"".join(logits), "<f4").reshape(len(rows), -1 if rows else 0).astype(np.float32)
    return LabelledAnswers(found, np.array(labels, np.int64), np.array(calibrations, str), np.array(answered, float))


def too_new(found: int) -> StoreError:
    return StoreError(
        f"its tables are of version {found} and this service knows version {SCHEMA} only; use a newer service, or "
        "another TRUEODDS_FEEDBACK"
    )


def _sqlite(url: str, most_rows: int) -> Store:
    from service.stores.sqlite import SqliteStore

    return SqliteStore(url, most_rows)


def _postgres(url: str, most_rows: int) -> Store:
    from service.stores.postgres import PostgresStore

    return PostgresStore(url, most_rows)


STORES: dict[str, Callable[[str, int], Store]] = {
    "sqlite": _sqlite,
    "postgresql": _postgres,
    "postgres": _postgres,
}


def store_at(url: str, most_rows: int = 10**12) -> Store:
    """The store of a URL, which need not be there yet. Raises SettingError, without the URL: it may hold a password."""
    try:
        scheme = urlsplit(url).scheme
    except ValueError:
        scheme = ""
    if scheme not in STORES:
        raise SettingError(
            "TRUEODDS_FEEDBACK is no address of a store; set sqlite:///PATH, postgresql://USER:PASSWORD@HOST/DATABASE "
            "or off."
        )
    return STORES[scheme](url, most_rows)


def read(url: str, model: str) -> LabelledAnswers:
    """The labels of random answers in distribution of a model, from outside the service, which may be running.

    Raises StoreError, SettingError. Not within a running event loop.
    """
    store = store_at(url)
    try:
        return store.read(model)
    finally:
        store.close()
