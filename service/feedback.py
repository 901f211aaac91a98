"""Labels that come after answers: takes them, and tells whether the models still keep their promise.

A label counts for the answer that was given under its request id, by whichever worker, and for the calibration of that
answer.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service import drift
from service.bundle import Bundle
from service.drift import Tally
from service.errors import BadParameter, OtherLabel, Problem, UnknownAnswer
from service.labels import Body, Told, parse
from service.ledger import Ledger
from service.memory import Memories, Remembered
from service.registry import Registry, ServedModel
from service.responses import INERT, JSON, Response, encode
from service.settings import Settings
from service.stores import Label, Outcome, Store, Tallies, store_at

OFF = "off"

# A status, and what is told of a label; or what is wrong with it.
Result = tuple[int, dict[str, Any]] | Problem


class Feedback:
    """The loop from answers to labels to gauges, of one worker."""

    def __init__(
        self, memories: Memories, ledger: Ledger, registry: Registry, now: Callable[[], float] = time.time
    ) -> None:
        self._memories = memories
        self._ledger = ledger
        self._models = registry.models
        self._now = now
        self._gauges = CollectorRegistry()
        self._gauges.register(_Gauges(self))

    async def record(self, body: bytes, request_id: str) -> Response:
        """The answer to POST /v1/feedback. Raises Problem: for one label whatever is wrong, for a list what is for all.

        `request_id` is that of this request.
        """
        parsed = parse(body)
        # Of these there is nothing to be looked for.
        sound = [item for item in parsed.items if isinstance(item, Told)]
        results = iter(await self._ledger.use(lambda store: self._recorded(store, sound)) if sound else ())
        return _response(
            parsed, [next(results) if isinstance(item, Told) else item for item in parsed.items], request_id
        )

    async def drift(self, model: ServedModel) -> Response:
        """The answer to GET /v1/models/{name}/drift. Raises FeedbackUnavailable."""
        tallies = await self._ledger.tallies()
        found = {**identity(model.bundle), **report_of(model.bundle, tallies)}
        return Response(200, JSON, encode(found), (INERT, (b"cache-control", b"no-store")))

    def exposition(self) -> bytes:
        """The gauges in Prometheus' text format, the same in all workers but for a second. Not on the event loop."""
        return generate_latest(self._gauges)

    def close(self) -> None:
        self._ledger.close()

    def tallies_soon(self) -> Tallies | None:
        return self._ledger.tallies_soon()

    @property
    def bundles(self) -> list[Bundle]:
        """Of the models that promise anything."""
        return [model.bundle for model in self._models.values() if model.bundle.calibration]

    def _recorded(self, store: Store, items: Sequence[Told]) -> list[Result]:
        """In the thread of the store."""
        found = self._memories.find([(item.request_id, item.index) for item in items])
        complaints = [_complaint(item, answer) for item, answer in zip(items, found, strict=True)]
        labels = [
            Label(item.request_id, item.index, item.label, item.sampling, answer)
            for item, answer, complaint in zip(items, found, complaints, strict=True)
            if complaint is None
        ]
        outcomes = iter(store.record(labels, self._now()) if labels else ())
        return [
            complaint or self._result(item, next(outcomes)) for item, complaint in zip(items, complaints, strict=True)
        ]

    def _result(self, item: Told, outcome: Outcome) -> Result:
        kept = outcome.kept
        if kept is None:
            return UnknownAnswer(
                f"No answer is remembered under this request_id and index {item.index}; each worker remembers the last "
                f"{self._memories.capacity:,} of each calibrated model, until the service ends."
            )
        if (kept.label, kept.sampling) != (item.label, item.sampling):
            return OtherLabel(f"This answer was labelled {kept.label!r}, {kept.sampling}, before, and that stays.")
        told = {
            "request_id": item.request_id,
            "index": item.index,
            "label": item.label,
            "sampling": item.sampling,
            "model": kept.model,
            "calibration": kept.calibration,
            "recorded": "now" if outcome.recorded else "before",
        }
        return 201 if outcome.recorded else 200, told


class _Gauges(Collector):
    def __init__(self, feedback: Feedback) -> None:
        self._feedback = feedback

    def collect(self) -> list[Metric]:
        return gauges(self._feedback.bundles, self._feedback.tallies_soon())


def started(settings: Settings, memories: Memories, registry: Registry) -> Feedback | None:
    """None where the settings turn it off. Raises SettingError."""
    if not is_on(settings):
        return None
    ledger = Ledger(store_at(settings.feedback, settings.feedback_max))
    return Feedback(memories, ledger, registry)


def memories(settings: Settings, folder: Path | None, number: int) -> Memories:
    """Of worker `number`; they remember nothing where feedback is off."""
    return Memories(settings.feedback_remembers if is_on(settings) else 0, folder, number)


def is_on(settings: Settings) -> bool:
    return settings.feedback != OFF and settings.feedback_remembers > 0


def check(settings: Settings) -> None:
    """Raises SettingError for what would keep the workers from starting."""
    if is_on(settings):
        store_at(settings.feedback).close()


def identity(bundle: Bundle) -> dict[str, Any]:
    manifest, calibration = bundle.manifest, bundle.calibration
    model = {"name": manifest.name, "version": manifest.version, "sha256": bundle.sha256}
    return {"model": model, "calibration": calibration and calibration.id}


def report_of(bundle: Bundle, tallies: Tallies) -> dict[str, Any]:
    """Of a model under the calibration that it is served with."""
    own, others = _split(bundle, tallies)
    # That of the sets of which nobody asked another.
    return drift.report(own, others, next(iter(bundle.coverages), None))


def _split(bundle: Bundle, tallies: Tallies) -> tuple[Tally, int]:
    """A model's tally under its present calibration, and how many labels there are of others of its."""
    name, present = bundle.manifest.name, bundle.calibration.id if bundle.calibration else ""
    others = [tally for (model, calibration), tally in tallies.items() if model == name and calibration != present]
    return tallies.get((name, present), Tally()), sum(each.labels + each.selected + each.strange for each in others)


def gauges(bundles: Sequence[Bundle], tallies: Tallies | None) -> list[Metric]:
    """What Prometheus is told; only that the store does not answer where there are no tallies."""
    up = GaugeMetricFamily("trueodds_feedback_up", "1 where labels can be recorded and counted, else 0.")
    up.add_metric([], tallies is not None)
    if tallies is None:
        return [up]
    z, alarm, capital, labels, accuracy, coverage = (
        GaugeMetricFamily(f"trueodds_{name}", told, labels=("model", *further))
        for name, told, *further in (
            ("drift_z", "Spiegelhalter's Z of the present calibration, for one look."),
            ("drift_alarm", "1 where the promise of calibration is broken, else 0; false once in 100 models at most."),
            ("drift_capital", "What speaks against the present calibration; an alarm from 100 on."),
            ("feedback_labels", "Labels by the use that is made of them.", "use"),
            ("feedback_accuracy", "Of the answers that count.", "kind"),
            ("feedback_coverage", "Of the prediction sets that count.", "kind"),
        )
    )
    for bundle in bundles:
        name, told = bundle.manifest.name, report_of(bundle, tallies)
        alarm.add_metric([name], told["alarm"])
        capital.add_metric([name], told["test"]["capital"])
        _add(z, [name], told["spiegelhalter"]["z"])
        for use, number in told["labels"].items():
            labels.add_metric([name, use], number)
        for family, kept in ((accuracy, told["accuracy"]), (coverage, told["coverage"])):
            for kind in ("observed", "promised"):
                _add(family, [name, kind], kept[kind])
    return [up, z, alarm, capital, labels, accuracy, coverage]


def _add(family: GaugeMetricFamily, labels: Sequence[str], value: float | None) -> None:
    if value is not None:
        family.add_metric(labels, value)


def _complaint(item: Told, answer: Remembered | None) -> Problem | None:
    if answer and item.label not in answer.origin.labels:
        known = ", ".join(answer.origin.labels)
        return BadParameter(f"There is no such label in {answer.origin.model}; there are {known}.")
    return None


def _response(body: Body, results: Sequence[Result], request_id: str) -> Response:
    """Raises what is wrong with a lone label."""
    if body.several:
        return Response(200, JSON, encode({"results": [_listed(result, request_id) for result in results]}), (INERT,))
    (result,) = results
    if isinstance(result, Problem):
        raise result
    return Response(result[0], JSON, encode(result[1]), (INERT,))


def _listed(result: Result, request_id: str) -> Mapping[str, Any]:
    return {"error": result.document(request_id)} if isinstance(result, Problem) else result[1]
