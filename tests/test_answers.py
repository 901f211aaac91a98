"""service.answers: the result object of the contract, value by value."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.answers import Answers, Options
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
    return Outputs(narrow, probabilities, members, strangeness, strangeness > ood_from)


def sent(bundle: Bundle, given: Outputs, options: Options | None = None) -> list[dict[str, Any]]:
    """The results as a client reads them."""
    document = json.loads(encode({"results": Answers(bundle).results(given, options or Options(), "id-1")}))
    results: list[dict[str, Any]] = document["results"]
    return results


def test_a_result_has_the_members_of_the_contract(bundle: Bundle) -> None:
    """Every member, with the bundle's own names and figures."""
    given = outputs()
    result = sent(bundle, given)[0]
    predictions = result.pop("predictions")
    score = result["ood"].pop("score")
    assert result == {
        "request_id": "id-1",
        "model": {"name": "pets", "version": "1", "sha256": bundle.calibration.model_sha256},
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


def test_more_than_one_possible_label_abstains(bundle: Bundle) -> None:
    """A certain answer does not abstain; a set of two does."""
    certain, doubtful = sent(bundle, outputs(np.array([[12.0, 0, 0, 0, 0], [9, 0, 8.5, 0, 0]], np.float32)))
    assert (certain["prediction_set"]["labels"], certain["abstain"]) == (["ant"], False)
    assert (doubtful["prediction_set"]["labels"], doubtful["abstain"]) == (["ant", "cat"], True)


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
