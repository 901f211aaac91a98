"""Pictures of the evidence: sound SVG in which every bin, error and threshold of the figures has its mark."""

import re
from collections.abc import Callable
from xml.etree.ElementTree import Element, fromstring

import pytest

from export.pictures import PICTURES, at_threshold, confidence, confusion, outside, reliability, risk_coverage
from service.documents import Bin, Calibration
from tests.measured import LABELS, calibration

SVG = "{http://www.w3.org/2000/svg}"
pytestmark = pytest.mark.slow


def drawn(picture: Callable[[Calibration], bytes], found: Calibration) -> tuple[Element, list[str]]:
    """The picture and the ids in it."""
    root = fromstring(picture(found))
    return root, [element.get("id", "") for element in root.iter()]


def named(ids: list[str], pattern: str) -> set[str]:
    return {name for name in ids if re.fullmatch(pattern, name)}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_small_sound_and_the_same_each_time(name: str) -> None:
    """XML with text as text in a generic font, on white, without dates; less than 60 kB."""
    found = calibration()
    written = PICTURES[name](found)
    assert written == PICTURES[name](found)
    root = fromstring(written)
    assert root.tag == f"{SVG}svg"
    assert len(written) < 60_000
    assert b"metadata" not in written
    texts = list(root.iter(f"{SVG}text"))
    assert texts
    assert re.findall(rb"font-family: ?([^;}]+)", written) == [b"sans-serif"]
    background = next(element for element in root.iter() if element.get("id") == "patch_1")
    assert "fill: #ffffff" in background[0].get("style", "")


@pytest.mark.parametrize("method", ["map_temperature", "identity"])
def test_every_bin_with_images_has_its_marks(method: str) -> None:
    """Before and after: band, gap, point and count in the diagram, a bar in the histogram; empty bins have none."""
    found = calibration(method)
    _, ids = drawn(reliability, found)
    _, bars = drawn(confidence, found)
    for side in ("before", "after"):
        filled = {i for i, one in enumerate(getattr(found.bins, side)) if one.n}
        assert 5 < len(filled) < 15
        for mark in ("band", "stem", "point", "count", "gap-band", "gap-stem", "gap-point"):
            assert named(ids, rf"{side}-{mark}-\d+") == {f"{side}-{mark}-{i}" for i in filled}
        assert named(bars, rf"{side}-bar-\d+") == {f"{side}-bar-{i}" for i in filled}


def test_a_point_lies_where_its_bin_says() -> None:
    """Its place on the canvas is linear in confidence and accuracy; its colour tells whether chance explains it."""
    found = calibration()
    root, _ = drawn(reliability, found)
    marks = {element.get("id"): next(element.iter(f"{SVG}use")) for element in root.iter() if _is_point(element)}
    bins = [(i, one) for i, one in enumerate(found.bins.before) if one.n]
    (_, first), *_, (_, last) = bins
    xs, ys = ({i: float(marks[f"before-point-{i}"].get(axis, "")) for i, _ in bins} for axis in "xy")
    assert {outside(one) for _, one in bins} == {True, False}
    across = (xs[bins[-1][0]] - xs[bins[0][0]]) / ((last.confidence or 0) - (first.confidence or 0))
    down = (ys[bins[-1][0]] - ys[bins[0][0]]) / ((last.accuracy or 0) - (first.accuracy or 0))
    assert across > 0 > down
    for i, one in bins:
        assert one.confidence is not None
        assert one.accuracy is not None
        assert first.confidence is not None
        assert first.accuracy is not None
        assert xs[i] - xs[bins[0][0]] == pytest.approx(across * (one.confidence - first.confidence), abs=0.05)
        assert ys[i] - ys[bins[0][0]] == pytest.approx(down * (one.accuracy - first.accuracy), abs=0.05)
        assert ("fill: #d55e00" in marks[f"before-point-{i}"].get("style", "")) == outside(one)


def _is_point(element: Element) -> bool:
    return re.fullmatch(r"before-point-\d+", element.get("id", "")) is not None


def test_every_pair_of_classes_that_occurs_has_a_cell_with_its_count() -> None:
    """Others have none; the counts are the matrix's, right answers among them."""
    found = calibration()
    root, ids = drawn(confusion, found)
    filled = {(i, j): n for i, row in enumerate(found.confusion) for j, n in enumerate(row) if n}
    assert named(ids, r"cell-\d+-\d+") == {f"cell-{i}-{j}" for i, j in filled}
    told = [text.text for text in root.iter(f"{SVG}text")]
    assert sorted(text for text in told if text and text.isdigit()) == sorted(map(str, filled.values()))
    assert set(LABELS) <= set(told)


def test_right_answers_do_not_outshine_errors() -> None:
    """The diagonal is grey however large its counts are, and every error is coloured."""
    root, _ = drawn(confusion, calibration())
    for element in root.iter():
        if cell := re.fullmatch(r"cell-(\d+)-(\d+)", element.get("id", "")):
            style = element[0].get("style", "")
            assert ("fill: #eeeeee" in style) == (cell[1] == cell[2])


def test_the_curve_has_every_point_and_the_threshold_its_mark() -> None:
    """The mark lies on the last point that is at least as sure as the threshold."""
    found = calibration()
    answered = at_threshold(found)
    assert answered in found.risk_coverage
    root, ids = drawn(risk_coverage, found)
    assert {"curve", "best", "promise", "threshold"} <= set(ids)
    assert any("abstains below 0.6180" in (text.text or "") for text in root.iter(f"{SVG}text"))
    less_sure = [point for point in found.risk_coverage if point.coverage > answered.coverage]
    assert answered.confidence >= found.abstention.threshold > max(point.confidence for point in less_sure)


def test_a_model_that_abstains_from_all_has_no_mark() -> None:
    """There is no point to mark."""
    found = calibration()
    never = found.model_copy(update={"abstention": found.abstention.model_copy(update={"threshold": 1.0})})
    assert at_threshold(never) is None
    _, ids = drawn(risk_coverage, never)
    assert "threshold" not in ids


def test_a_model_without_errors_and_with_all_bins_filled_is_drawn() -> None:
    """The extremes: nothing to colour, and as many marks as there can be in 60 kB."""
    found = calibration()
    full = [
        Bin(
            low=i / 15, high=(i + 1) / 15, n=100_000, confidence=(i + 0.5) / 15, accuracy=1, null_low=0.1, null_high=0.9
        )
        for i in range(15)
    ]
    diagonal = [[10 * (i == j) for j in range(4)] for i in range(4)]
    sure = [point.model_copy(update={"risk": 0.0}) for point in found.risk_coverage]
    extreme = found.model_copy(
        update={
            "bins": found.bins.model_copy(update={"before": full, "after": full}),
            "confusion": diagonal,
            "risk_coverage": sure,
        }
    )
    for name, draw in PICTURES.items():
        assert len(draw(extreme)) < 60_000, name


@pytest.mark.parametrize(
    ("accuracy", "low", "high", "expected"),
    [(0.5, 0.4, 0.6, False), (0.4, 0.4, 0.6, False), (0.39, 0.4, 0.6, True), (0.61, 0.4, 0.6, True)],
)
def test_outside_is_beyond_the_interval(accuracy: float, low: float, high: float, expected: bool) -> None:
    """Its ends belong to it; an empty bin is never outside."""
    one = Bin(low=0.4, high=0.6, n=5, confidence=0.5, accuracy=accuracy, null_low=low, null_high=high)
    assert outside(one) is expected
    empty = Bin(low=0.4, high=0.6, n=0, confidence=None, accuracy=None, null_low=None, null_high=None)
    assert not outside(empty)
