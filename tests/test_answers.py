"""service.answers: the result object of the contract, value by value."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.answers import Answers, Options, Row
from service.backends import Outputs
from service.bundle import Bundle, load
from service.calibration import Floats, energy, softmax
from service.responses import encode
from tests.test_bundle import write_bundle

LABELS = ["ant", "bee", "cat", "dog", "owl"]
LOGITS = np.array([[1, 4, 2, 3, 0], [9, 0, 8.5, 0, 0], [0, 0, 0, 0, 0]], np.float32)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return load(write_bundle(tmp_path, labels=LABELS))


def outputs(
    logits: Floats = LOGITS, temperature: float = 1.5, set_from: float = 0.25, ood_from: float = -3.5
) -> Outputs:
    """What a graph with these parameters answers."""
    narrow = logits.astype(np.float32)
    probabilities = softmax(narrow / np.float32(temperature))
    members = (probabilities >= set_from) | (probabilities == probabilities.max(1, keepdims=True))
    strangeness = energy(narrow)
    # The score is another number than the energy, as it is by most methods.
    return Outputs(narrow, probabilities, members, strangeness - 1, strangeness > ood_from, strangeness)


def sent(bundle: Bundle, given: Outputs, options: Options | None = None) -> list[dict[str, Any]]:
    """The results as a client reads them."""
    answers = Answers(bundle)
    return [json.loads(answers.encode(row, options or Options(), "id-1")) for row in answers.rows(given)]


def oracle(bundle: Bundle, given: Outputs, options: Options, request_id: str) -> list[bytes]:
    """The results without haste: a document for each image, its values numpy's scalars, encoded by orjson."""
    labels, calibration = bundle.manifest.labels, bundle.calibration
    assert calibration is not None
    wanted = options.coverage or calibration.conformal[0].coverage
    level = next(level for level in calibration.conformal if level.coverage == wanted)
    uncalibrated = softmax(given.logits)
    order = np.argsort(-given.logits, axis=1, kind="stable")[:, : options.top_k].tolist()
    documents = []
    for i in range(len(given)):
        best = int(np.argsort(-given.logits[i], kind="stable")[0])
        likely = given.probabilities[i] >= np.float32(level.threshold)
        likely[best] = True
        members = np.flatnonzero(given.prediction_set[i] if options.coverage is None else likely).tolist()
        is_ood = bool(given.is_ood[i])
        document = {
            "request_id": request_id,
            "model": {"name": bundle.manifest.name, "version": bundle.manifest.version, "sha256": bundle.sha256},
            "predictions": [
                {
                    "label": labels[k],
                    "class_index": k,
                    "probability": given.probabilities[i, k],
                    "uncalibrated_probability": uncalibrated[i, k],
                }
                for k in order[i]
            ],
            "prediction_set": {
                "labels": [labels[k] for k in members],
                "coverage": round(1 - level.alpha, 6),
                "method": "lac",
            },
            "abstain": is_ood or bool(given.probabilities[i, best] < np.float32(calibration.abstention.threshold)),
            "ood": {
                "score": given.ood_score[i],
                "is_ood": is_ood,
                "method": calibration.ood.method,
                "threshold": calibration.ood.threshold,
            },
            "calibration": {
                "id": calibration.id,
                "method": calibration.method,
                "ece_15": calibration.metrics.after.ece_15,
                "ece_null_p99": calibration.metrics.null.ece_15_p99,
                "n_fit": calibration.data["fit"].n,
                "valid_for": None if is_ood else "in_distribution",
            },
        }
        documents.append(document | ({"logits": given.logits[i]} if options.logits else {}))
    return [encode(document) for document in documents]


def bundle_with(labels: list[str], root: Path) -> Bundle:
    """A bundle that differs from one on disk by its labels only."""
    found = load(write_bundle(root)) if not (root / "pets").exists() else load(root / "pets" / "1")
    assert found.calibration is not None
    return replace(
        found,
        manifest=found.manifest.model_copy(update={"labels": labels}),
        calibration=found.calibration.model_copy(update={"labels": labels}),
    )


ODD = ['quote " and \\', "new\nline", "\x00\x1f\x7f", "é 日本 🦉", "", "%b %d {}", "a", "a", "\u2028", "</script>"]
LABEL_LISTS = st.lists(st.one_of(st.sampled_from(ODD), st.text(max_size=8)), min_size=1, max_size=14)
FLOATS = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, 1.2e-38, 3.4e38, -3.4e38, 1e4, -1e4, 0.1, 16777216.0]),
    st.sampled_from([float("nan"), float("inf"), float("-inf")]),
    st.floats(width=32),
)


def table(n: int, classes: int, numbers: st.SearchStrategy[float]) -> st.SearchStrategy[npt.NDArray[np.float32]]:
    row = st.lists(numbers, min_size=n * classes, max_size=n * classes)
    return row.map(lambda values: np.array(values, np.float32).reshape(n, classes))


@st.composite
def any_outputs(draw: st.DrawFn, classes: int) -> Outputs:
    """What no sane graph would answer, too: not a number, infinite, nothing in the set, everything in it."""
    n = draw(st.integers(1, 5))
    numbers = draw(st.sampled_from([FLOATS, st.sampled_from([0.0, 1.0, 2.0]), st.floats(-20, 20, width=32)]))
    flags = st.lists(st.booleans(), min_size=n * classes, max_size=n * classes)
    members = draw(st.one_of(flags, st.just([True] * n * classes), st.just([False] * n * classes)))
    return Outputs(
        draw(table(n, classes, numbers)),
        draw(table(n, classes, st.one_of(FLOATS, st.floats(0, 1, width=32)))),
        np.array(members).reshape(n, classes),
        draw(table(n, 1, numbers))[:, 0],
        np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n))),
        draw(table(n, 1, numbers))[:, 0],
    )


@pytest.mark.slow
@given(
    st.data(), LABEL_LISTS, st.one_of(st.none(), st.integers(1, 20)), st.booleans(), st.sampled_from([None, 0.95, 0.9])
)
@settings(deadline=None, max_examples=300)
def test_an_answer_is_byte_for_byte_the_documents_json(
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
    labels: list[str],
    top_k: int | None,
    logits: bool,
    coverage: float | None,
) -> None:
    """Whatever the outputs, labels and options, the parts put together are what orjson makes of the whole."""
    bundle = bundle_with(labels, tmp_path_factory.getbasetemp() / "answers")
    given, options = data.draw(any_outputs(len(labels))), Options(top_k, logits, coverage)
    request_id = data.draw(st.from_regex(r"[A-Za-z0-9._-]{1,128}", fullmatch=True))
    answers = Answers(bundle)
    with np.errstate(invalid="ignore", over="ignore"):
        rows, expected = answers.rows(given), oracle(bundle, given, options, request_id)
    assert [answers.encode(row, options, request_id) for row in rows] == expected
    assert [answers.encode(row.alone(), options, request_id) for row in rows] == expected


@pytest.mark.parametrize("classes", [1, 2, 10, 1000])
@pytest.mark.parametrize("n", [1, 2, 16, 64])
@pytest.mark.parametrize(
    "options", [Options(), Options(None, logits=True), Options(1), Options(2, coverage=0.9)], ids=str
)
def test_batches_of_every_size_are_answered_alike(tmp_path: Path, classes: int, n: int, options: Options) -> None:
    """As the oracle does it, for models of one class to a thousand."""
    bundle = bundle_with([f"label {k}" for k in range(classes)], tmp_path)
    given = outputs(np.random.default_rng(0).normal(size=(n, classes)).astype(np.float32) * 4)
    answers = Answers(bundle)
    assert [answers.encode(row, options, "id-1") for row in answers.rows(given)] == oracle(
        bundle, given, options, "id-1"
    )


def test_a_row_alone_keeps_nothing_of_its_batch(bundle: Bundle) -> None:
    """Its arrays are its own, so that one row that is kept does not keep 63 others."""
    row: Row = Answers(bundle).rows(outputs())[1].alone()
    assert row.order.base is None
    assert row.numbers.base is None
    assert (row.order.shape, row.numbers.shape) == ((5,), (17,))


def test_numbers_survive_as_they_are(bundle: Bundle) -> None:
    """A probability of 1e-45 is told as such, 0.1 as 0.1, and what is no number as null."""
    logits = np.array([[3, 2, 1, 0, -1]], np.float32)
    probabilities = np.array([[0.1, 1e-45, 1e-30, 1 / 3, np.nan]], np.float32)
    strange = np.array([np.inf], np.float32)
    given = Outputs(logits, probabilities, logits > 2, strange, np.array([False]), strange)
    answers = Answers(bundle)
    text = answers.encode(answers.rows(given)[0], Options(None), "id-1")
    for told in (b'"probability":0.1,', b'"probability":1e-45,', b'"probability":1e-30,', b'"probability":0.33333334,'):
        assert told in text
    assert b'"probability":null,' in text
    assert b'"score":null,' in text


def test_a_result_has_the_members_of_the_contract(bundle: Bundle) -> None:
    """Every member, with the bundle's own names and figures."""
    assert bundle.calibration is not None
    result = sent(bundle, outputs())[0]
    predictions = result.pop("predictions")
    score = result["ood"].pop("score")
    assert result == {
        "request_id": "id-1",
        "model": {"name": "pets", "version": "1", "sha256": bundle.sha256},
        "prediction_set": {"labels": ["bee", "dog"], "coverage": 0.95, "method": "lac"},
        "abstain": True,
        "ood": {"method": "energy", "threshold": -3.5, "is_ood": False},
        "calibration": {
            "id": bundle.calibration.id,
            "method": "map_temperature",
            "ece_15": 0.011,
            "ece_null_p99": 0.014,
            "n_fit": 1000,
            "valid_for": "in_distribution",
        },
    }
    assert score == pytest.approx(-np.log(np.exp([1, 4, 2, 3, 0]).sum()), abs=1e-5)
    assert [prediction.keys() for prediction in predictions] == [
        {"label", "class_index", "probability", "uncalibrated_probability"}
    ] * 3


def test_predictions_tell_both_probabilities_best_first(bundle: Bundle) -> None:
    """Calibrated from the graph, uncalibrated the softmax of its logits, each beside its own label."""
    given = outputs()
    for row, result in enumerate(sent(bundle, given)):
        plain = np.exp(LOGITS[row]) / np.exp(LOGITS[row]).sum()
        for prediction in result["predictions"]:
            k = prediction["class_index"]
            assert prediction["label"] == LABELS[k]
            assert prediction["probability"] == pytest.approx(float(given.probabilities[row, k]), abs=1e-7)
            assert prediction["uncalibrated_probability"] == pytest.approx(plain[k], abs=1e-6)
    assert [[p["label"] for p in result["predictions"]] for result in sent(bundle, given)] == [
        ["bee", "dog", "cat"],
        ["ant", "cat", "bee"],
        ["ant", "bee", "cat"],
    ]


@pytest.mark.parametrize(("top_k", "count"), [(1, 1), (3, 3), (5, 5), (None, 5)])
def test_top_k_is_how_many_predictions_come(bundle: Bundle, top_k: int | None, count: int) -> None:
    """None means every class; together they then sum to 1."""
    results = sent(bundle, outputs(), Options(top_k))
    assert [len(result["predictions"]) for result in results] == [count] * 3
    if count == 5:
        for member in ("probability", "uncalibrated_probability"):
            sums = [sum(prediction[member] for prediction in result["predictions"]) for result in results]
            assert sums == pytest.approx([1, 1, 1], abs=1e-6)


def test_ties_in_probability_are_ordered_by_logits(bundle: Bundle) -> None:
    """Where the tail's probabilities are all 0, the logits still tell second from last."""
    given = outputs(np.array([[-300, 200, -500, -200, -400]], np.float32))
    assert given.probabilities[0].tolist() == [0, 1, 0, 0, 0]
    order = [prediction["class_index"] for prediction in sent(bundle, given, Options(None))[0]["predictions"]]
    assert order == [1, 3, 0, 4, 2]


def test_a_strange_image_has_no_valid_calibration(bundle: Bundle) -> None:
    """is_ood makes valid_for null and abstains, even when the set holds one label."""
    given = outputs(np.array([[1.0, 1.5, 0, 0, 0], [9, 0, 0, 0, 0]], np.float32), set_from=0.9)
    strange, ordinary = sent(bundle, given)
    assert given.is_ood.tolist() == [True, False]
    assert strange["ood"]["is_ood"] is True
    assert strange["calibration"]["valid_for"] is None
    assert len(strange["prediction_set"]["labels"]) == 1
    assert strange["abstain"] is True
    assert ordinary["ood"]["is_ood"] is False
    assert ordinary["calibration"]["valid_for"] == "in_distribution"
    assert ordinary["abstain"] is False


def test_who_is_not_sure_enough_abstains(bundle: Bundle) -> None:
    """Below the confidence whose risk is known, however few labels are possible."""
    assert bundle.calibration is not None
    assert bundle.calibration.abstention.threshold == 0.7
    given = outputs(np.array([[9, 0, 0, 0, 0], [9, 0, 8.5, 0, 0], [9, 7, 0, 0, 0]], np.float32), set_from=0.5)
    sure, doubtful, nearly = sent(bundle, given)
    assert (sure["prediction_set"]["labels"], sure["abstain"]) == (["ant"], False)
    assert 0.5 < doubtful["predictions"][0]["probability"] < 0.7
    assert (doubtful["prediction_set"]["labels"], doubtful["abstain"]) == (["ant"], True)
    assert 0.7 < nearly["predictions"][0]["probability"] < 0.8
    assert nearly["abstain"] is False


def test_a_set_of_another_coverage(bundle: Bundle) -> None:
    """By its own threshold, likeliest included; the rest of the answer stays as it is."""
    given = outputs(np.array([[9, 0, 8.5, 0, 0], [1, 1.5, 0, 0, 0]], np.float32))
    wide, narrow = (sent(bundle, given, Options(coverage=coverage)) for coverage in (0.95, 0.9))
    assert [result["prediction_set"]["labels"] for result in wide] == [["ant", "cat"], ["bee"]]
    assert [result["prediction_set"]["labels"] for result in narrow] == [["ant"], ["bee"]]
    assert {result["prediction_set"]["coverage"] for result in narrow} == {0.9}
    for one, other in zip(wide, narrow, strict=True):
        assert one | {"prediction_set": None} == other | {"prediction_set": None}


def test_without_calibration_nothing_is_promised(bundle: Bundle) -> None:
    """The method is none, and every answer abstains."""
    result = sent(replace(bundle, calibration=None), outputs())[1]
    assert result["calibration"] == {
        "id": None,
        "method": "none",
        "ece_15": None,
        "ece_null_p99": None,
        "n_fit": 0,
        "valid_for": None,
    }
    assert result["prediction_set"]["method"] == result["ood"]["method"] == "none"
    assert (result["prediction_set"]["coverage"], result["ood"]["threshold"]) == (None, None)
    assert result["abstain"] is True


def test_logits_come_when_asked_for(bundle: Bundle) -> None:
    """All of them, in the order of the classes, whatever top_k is; otherwise there is no such member."""
    for row, result in enumerate(sent(bundle, outputs(), Options(1, logits=True))):
        assert result["logits"] == LOGITS[row].tolist()
    assert all("logits" not in result for result in sent(bundle, outputs()))


def test_batched_and_single_answers_are_the_same(bundle: Bundle) -> None:
    """An image's result does not depend on the images beside it."""
    given = outputs()
    together = sent(bundle, given, Options(None, logits=True))
    alone = [sent(bundle, part, Options(None, logits=True))[0] for part in given.split([1, 1, 1])]
    assert together == alone


def test_huge_logits_give_finite_json(bundle: Bundle) -> None:
    """Nothing in a result of extreme logits is null that should be a number."""
    result = sent(bundle, outputs(np.array([[1e4, -1e4, 0, 1, 2]], np.float32)), Options(None, logits=True))[0]
    assert all(0 <= p["probability"] <= 1 and 0 <= p["uncalibrated_probability"] <= 1 for p in result["predictions"])
    assert result["ood"]["score"] == -1e4


def test_a_model_of_two_classes_answers_with_both(tmp_path: Path) -> None:
    """The default top_k of three is no more than there are."""
    bundle = load(write_bundle(tmp_path, labels=["no", "yes"]))
    result = sent(bundle, outputs(np.array([[2.0, 5.0]], np.float32)))[0]
    assert [prediction["label"] for prediction in result["predictions"]] == ["yes", "no"]
