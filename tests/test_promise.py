"""The promise, checked as an outsider would: the whole test sets over HTTP, and nothing but the responses."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from export.conformal import coverage_bounds
from models import MODELS
from models.datasets import load
from service import bundle
from service.calibration import lac_threshold
from service.settings import BUNDLES
from tests.conftest import Server, calibration, data_dir

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(data_dir() is None, reason="needs the full data sets in DATA_DIR"),
]
ACCURACY = {"digits": 0.996, "cifar10": 0.935}
CLIENTS = 16
SPLITS, CALIBRATED_ON, MEASURED_ON = 60, 2500, 5000


@dataclass(frozen=True)
class Answered:
    """What the responses say of the test set: probabilities (N, C), whether the label is in the set, the flags (N,)."""

    labels: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float64]
    covered: npt.NDArray[np.bool_]
    abstain: npt.NDArray[np.bool_]
    published: dict[str, Any]

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        return np.asarray(self.probabilities.argmax(1) == self.labels)


def png(image: npt.NDArray[np.uint8]) -> bytes:
    file = BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module", params=sorted(ACCURACY))
def answered(server: Server, request: pytest.FixtureRequest) -> tuple[str, Answered]:
    """Each test image posted alone."""
    name = request.param
    data = load(MODELS[name].dataset, data_dir())
    names = bundle.discover(BUNDLES)[name].manifest.labels
    url = f"{server.url}/v1/models/{name}/classify?top_k=all"

    def share(start: int) -> list[dict[str, Any]]:
        with httpx.Client(headers={"content-type": "image/png"}, timeout=60) as client:
            return [client.post(url, content=png(image)).json() for image in data.test_images[start::CLIENTS]]

    results: list[dict[str, Any]] = [{}] * len(data.test_images)
    with ThreadPoolExecutor(CLIENTS) as pool:
        for start, seen in enumerate(pool.map(share, range(CLIENTS))):
            results[start::CLIENTS] = seen
    probabilities = np.zeros((len(results), len(names)))
    for row, result in zip(probabilities, results, strict=True):
        for entry in result["predictions"]:
            row[entry["class_index"]] = entry["probability"]
    truths = [names[truth] for truth in data.test_labels]
    pairs = list(zip(results, truths, strict=True))
    return (
        name,
        Answered(
            data.test_labels,
            probabilities,
            np.array([truth in result["prediction_set"]["labels"] for result, truth in pairs]),
            np.array([result["abstain"] for result in results]),
            httpx.get(f"{server.url}/v1/models/{name}/calibration").json()["calibration"],
        ),
    )


def reliability(confidences: npt.NDArray[np.float64], right: npt.NDArray[np.bool_], bins: int = 15) -> float:
    """The expected calibration error, written down anew from its definition."""
    total = 0.0
    for k in range(bins):
        inside = (k / bins < confidences) & (confidences <= (k + 1) / bins)
        if inside.any():
            total += abs(right[inside].mean() - confidences[inside].mean()) * inside.mean()
    return total


def test_the_responses_meet_the_published_figures(answered: tuple[str, Answered]) -> None:
    """Accuracy reaches its target; accuracy, ECE, NLL and Brier score from the responses alone are the published."""
    name, found = answered
    figures = found.published["metrics"]["after"]
    chosen = found.probabilities[np.arange(len(found.labels)), found.labels]
    squared = (found.probabilities**2).sum(1) - 2 * chosen + 1
    assert found.right.mean() >= ACCURACY[name]
    assert found.right.mean() == pytest.approx(figures["accuracy"], abs=2e-4)
    assert reliability(found.probabilities.max(1), found.right) == pytest.approx(figures["ece_15"], abs=1e-4)
    assert -np.log(chosen).mean() == pytest.approx(figures["nll"], abs=1e-3)
    assert squared.mean() == pytest.approx(figures["brier"], abs=1e-3)


def test_a_model_is_as_calibrated_as_chance_allows(answered: tuple[str, Answered]) -> None:
    """The ECE of its responses is no more than 99 in 100 perfectly calibrated models would score."""
    _, found = answered
    assert reliability(found.probabilities.max(1), found.right) <= found.published["metrics"]["null"]["ece_15_p99"]


def test_the_sets_hold_the_label_as_often_as_promised(answered: tuple[str, Answered]) -> None:
    """At least within the bounds of chance, for they always hold the likeliest label too."""
    name, found = answered
    level = calibration(name).conformal[0]
    low, _ = coverage_bounds(level.alpha, level.n, len(found.labels))
    assert found.covered.mean() >= low


def test_what_it_does_not_abstain_from_is_right_as_often_as_promised(answered: tuple[str, Answered]) -> None:
    """The risk among its answers is no more than its target, but for the chance of 10,000 images."""
    name, found = answered
    target = calibration(name).abstention.risk
    wrong, n = (~found.right[~found.abstain]).sum(), (~found.abstain).sum()
    assert n > 0.5 * len(found.labels)
    assert wrong <= target * n + 3 * np.sqrt(target * n)


def test_every_offered_coverage_holds_over_60_splits(answered: tuple[str, Answered]) -> None:
    """Thresholds of 2,500 responses cover 5,000 others as often as the beta-binomial law says, at every level."""
    name, found = answered
    rng = np.random.default_rng(0)
    of_label = found.probabilities[np.arange(len(found.labels)), found.labels]
    orders = [rng.permutation(len(found.labels)) for _ in range(SPLITS)]
    for level in calibration(name).conformal:
        low, high = coverage_bounds(level.alpha, CALIBRATED_ON, MEASURED_ON)
        shares = []
        for order in orders:
            fitted, measured = order[:CALIBRATED_ON], order[CALIBRATED_ON : CALIBRATED_ON + MEASURED_ON]
            threshold = lac_threshold(found.probabilities[fitted], found.labels[fitted], level.alpha)
            shares.append((of_label[measured] >= threshold).mean())
        outside = sum(not low <= share <= high for share in shares)
        # 2 in 1,000 may be outside; more than one of 60 is once in 150 runs, and this is one.
        assert outside <= 1, (level.coverage, low, high, sorted(shares))
