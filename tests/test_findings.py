"""What a card says of figures: each as the document has it, written out, and judged by its own bound."""

import re
from typing import Any

import pytest

from export import findings
from export.cards import card
from export.markdown import fine, finest, percent
from export.subject import Subject
from export.terms import METRICS
from service.documents import Calibration
from tests.measured import calibration
from tests.test_sections import subject, tables

# Figures are measured at the first use, which takes about a second.
pytestmark = pytest.mark.slow


def changed(found: Calibration, **members: object) -> Calibration:
    return found.model_copy(update=members)


def about(found: Calibration) -> Subject:
    return subject(found)


@pytest.mark.parametrize("method", ["map_temperature", "identity"])
def test_every_metric_stands_beside_its_null(method: str) -> None:
    """Uncalibrated, calibrated, the null's mean and percentiles, and whether the error is within chance."""
    found = calibration(method).metrics
    rows = tables(findings.metrics(about(calibration(method))))[0]
    written = {"accuracy": "{:.2%}".format, "nll": fine, "brier": fine}
    verdicts = set()
    for metric, row in zip(METRICS, rows[1:], strict=True):
        before, after = (getattr(side, metric.name) for side in (found.before, found.after))
        form = written.get(metric.name) or (percent if "ece" in metric.name else finest)
        assert row[:3] == [metric.title, form(before), form(after)]
        if "ece" in metric.name:
            null = [getattr(found.null, f"{metric.name}_{part}") for part in ("mean", "p95", "p99")]
            assert row[3:6] == [percent(value) for value in null]
            assert row[6] == ("yes" if after <= null[2] else "**no**")
            verdicts.add(row[6])
        else:
            assert row[3:] == ["–"] * 4
    assert ("**no**" in verdicts) == (method == "identity")


def test_every_figure_has_a_row_and_a_sentence() -> None:
    """None that is measured is left out; each is said in one sentence."""
    found = calibration()
    assert {metric.name for metric in METRICS} == set(type(found.metrics.after).model_fields) - {"n"}
    text = findings.metrics(about(found))
    for metric in METRICS:
        assert f"- **{metric.title}**: {metric.meaning}" in text
        assert metric.meaning.endswith(".")
        assert metric.meaning.count(". ") == 0


def test_the_summary_says_what_the_figures_carry() -> None:
    """Perfectly calibrated is not claimed; that it is not is said where the error exceeds the null's percentile."""
    good = findings.summary(about(calibration()))
    bad = findings.summary(about(calibration("identity")))
    assert "so this one shows no sign of being otherwise." in good
    assert "so this one is not perfectly calibrated." in bad
    figures = calibration().metrics
    for figure in (figures.before.ece_15, figures.after.ece_15, figures.null.ece_15_p99):
        assert percent(figure) in good


def test_a_target_is_reached_or_plainly_not() -> None:
    """The most demanding row whose accuracy is reached counts, else the least demanding, and then is missed."""
    figures = calibration().metrics
    good = {"accuracy": 0.951, "ece_15": 0.008, "nll": 0.170, "brier": 0.0874}
    for update, verdict, least in (
        (good, "Not reached: ECE, as it should be.", "≥ 94.00%"),
        (good | {"ece_15": 0.007}, "All are reached.", "≥ 94.00%"),
        (good | {"accuracy": 0.9359}, "Not reached: accuracy; ECE, as it should be.", "≥ 94.00%"),
        (good | {"accuracy": 0.9601}, "negative log-likelihood; Brier score.", "≥ 96.00%"),
    ):
        after = figures.after.model_copy(update=update)
        found = changed(calibration(), metrics=figures.model_copy(update={"after": after}))
        text = findings.targets(subject(found, dataset="cifar10"))
        assert verdict in text
        rows = tables(text)[0][1:]
        assert rows[0] == ["accuracy", f"{after.accuracy:.2%}", least, "yes" if after.accuracy >= 0.94 else "**no**"]
        assert [row[1] for row in rows[1:]] == [
            percent(after.ece_15),
            percent(after.ece_15),
            fine(after.nll),
            fine(after.brier),
        ]
    assert "None were set" in findings.targets(about(calibration()))


def test_bins_outside_of_chance_are_counted() -> None:
    """Of those with images, before and after."""
    found = calibration()
    counts = []
    for bins in (found.bins.before, found.bins.after):
        filled = [one for one in bins if one.n]
        odd = [one for one in filled if not (one.null_low or 0) <= (one.accuracy or 0) <= (one.null_high or 0)]
        counts.append(f"{len(odd)} of {len(filled)} bins")
    text = findings.reliability(about(found))
    assert f"Uncalibrated, {counts[0]} with images lie outside of the grey; calibrated, {counts[1]} with" in text
    assert re.findall(r"\]\((\w+\.svg)\)", text) == ["reliability.svg", "confidence.svg"]


def test_the_choice_and_the_gates_are_told_with_their_figures() -> None:
    """Candidates with loss, gain and its error; gates with value and bound, one without a bound among them."""
    found = calibration("isotonic_pooled")
    parameters, candidates, gates = tables(findings.choice(about(found)))
    assert parameters[1:] == [
        ["`temperature`", "2.5000"],
        ["`knots`", "3 numbers, see calibration.json"],
        ["`values`", "3 numbers, see calibration.json"],
    ]
    assert candidates[1:] == [
        ["`map_temperature`", "0.412345", "0.000000", "0.000000", "–"],
        ["`isotonic_pooled`", "0.401234", "0.011111", "0.002345", "yes"],
    ]
    assert gates[1:] == [
        ["change of the negative log-likelihood, 95 % upper bound", "-0.0123", "≤ 0", "yes"],
        ["ECE", "1.357%", "≤ 2.468%", "yes"],
        ["answers that calibration changed", "17", "–", "yes"],
    ]
    assert "It has no parameters." in findings.choice(about(calibration("identity")))


def test_the_worst_calibrated_classes_come_first_by_chance_not_by_size() -> None:
    """A small error that chance does not explain is worse than a large one that it does."""
    found = calibration()
    figures = [(0.030, 0.060), (0.010, 0.005), (0.020, 0.020), (0.001, 0.010)]
    classes = [
        one.model_copy(update={"ece": ece, "ece_null_p99": null})
        for one, (ece, null) in zip(found.classes, figures, strict=True)
    ]
    text = findings.classes(about(changed(found, classes=classes)))
    rows = tables(text)[0][1:]
    order = [1, 2, 0, 3]
    assert [row[0] for row in rows] == [found.labels[k] for k in order]
    assert [row[3:] for row in rows] == [
        ["1.000%", "0.500%", "**no**"],
        ["2.000%", "2.000%", "yes"],
        ["3.000%", "6.000%", "yes"],
        ["0.100%", "1.000%", "yes"],
    ]
    assert [row[1:3] for row in rows] == [[f"{classes[k].n:,}", f"{classes[k].recall:.2%}"] for k in order]
    assert "Of 4 classes 1 is beyond that" in text
    most = found.model_copy(update={"classes": classes * 3})
    assert len(tables(findings.classes(about(most)))[0]) == 1 + findings.WORST


def test_the_commonest_error_is_told() -> None:
    """Which class is taken for which, of how many errors; a model may have none."""
    found = calibration()
    matrix = [[90, 3, 0, 0], [0, 80, 7, 0], [1, 0, 70, 0], [0, 0, 0, 60]]
    text = findings.classes(about(changed(found, confusion=matrix)))
    assert "Of 11 errors the most of one kind, 7, take “bee | wasp” for “<cat>”." in text
    none = [[10 * (i == j) for j in range(4)] for i in range(4)]
    assert "There are no errors." in findings.classes(about(changed(found, confusion=none)))


def test_prediction_sets_are_told_for_each_coverage() -> None:
    """The one that is served unasked is marked."""
    assert tables(findings.prediction_sets(about(calibration())))[0][1:] == [
        ["95 %", "0.3142", "1,712", "yes"],
        ["99.9 %", "0.0272", "1,712", "–"],
    ]


def test_abstention_is_told_as_promised_and_as_found() -> None:
    """The promise's figures, and on the test set the point of the curve that the threshold leads to."""
    found = calibration()
    text = findings.abstention(about(found))
    assert [row[1] for row in tables(text)[0][1:]] == ["2.10%", "95 %", "0.6180", "1,712", "87.65%", "1.980%"]
    sure = [one for one in found.risk_coverage if one.confidence >= found.abstention.threshold]
    point = max(sure, key=lambda one: one.coverage)
    assert f"of the {point.coverage:.2%} of images with a confidence of {point.confidence:.4f} or more" in text
    assert f"more {point.risk:.3%} are answered wrong; of all together {1 - found.metrics.after.accuracy:.2%}." in text
    never = changed(found, abstention=found.abstention.model_copy(update={"threshold": 1.0}))
    assert "it abstains from all" in findings.abstention(about(never))


def leaves(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of each number in it."""
    if isinstance(document, dict):
        return [leaf for name, member in document.items() for leaf in leaves(member, (*path, name))]
    if isinstance(document, list):
        return [leaf for number, member in enumerate(document) for leaf in leaves(member, (*path, number))]
    return [path] if isinstance(document, int | float) and not isinstance(document, bool) else []


def test_no_figure_is_written_but_from_the_document() -> None:
    """Whichever number of the document is another, the card is another."""
    members = {"params", "selection", "gates", "data", "metrics", "conformal", "abstention", "ood"}
    told = leaves(calibration().model_dump(include=members))
    assert len(told) > 60
    before = card(about(calibration()))
    for leaf in told:
        # How many images there are is told once; a bound of 0 has no other value near.
        if leaf in {("metrics", "before", "n"), ("gates", 0, "bound")}:
            continue
        document = calibration().model_dump()
        place: Any = document
        for name in leaf[:-1]:
            place = place[name]
        value = place[leaf[-1]]
        place[leaf[-1]] = value + 1 if isinstance(value, int) else value * 0.75 or 0.001
        assert card(about(Calibration.model_validate(document))) != before, leaf
