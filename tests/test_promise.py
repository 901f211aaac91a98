"""The promise, checked as an outsider would: the whole test sets over HTTP, and nothing but the responses."""

from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import httpx
import numpy as np
import pytest
from PIL import Image

from models.datasets import load
from service import bundle
from service.settings import BUNDLES
from tests.conftest import Server, data_dir

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(data_dir() is None, reason="needs the full data sets in DATA_DIR"),
]
DATA = {"digits": ("mnist", 0.990), "cifar10": ("cifar10", 0.935)}
CLIENTS = 16


def png(image: np.ndarray) -> bytes:
    file = BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def reliability(confidences: list[float], right: list[bool], bins: int = 15) -> float:
    """The expected calibration error, written down anew from its definition."""
    total = 0.0
    for k in range(bins):
        inside = [i for i, c in enumerate(confidences) if k / bins < c <= (k + 1) / bins]
        if inside:
            gap = sum(right[i] for i in inside) / len(inside) - sum(confidences[i] for i in inside) / len(inside)
            total += abs(gap) * len(inside) / len(confidences)
    return total


@pytest.mark.parametrize("name", sorted(DATA))
def test_the_whole_test_set_over_http_meets_the_published_figures(server: Server, name: str) -> None:
    """Accuracy reaches the target; accuracy and ECE computed from the responses alone equal the published ones."""
    dataset, target = DATA[name]
    data = load(dataset, data_dir())
    labels = bundle.discover(BUNDLES)[name].manifest.labels
    published = httpx.get(f"{server.url}/v1/models/{name}").json()["calibration"]["metrics"]["after"]
    url = f"{server.url}/v1/models/{name}/classify?top_k=1"

    def share(start: int) -> list[tuple[str, float]]:
        with httpx.Client(headers={"content-type": "image/png"}, timeout=60) as client:
            tops = [client.post(url, content=png(image)).json() for image in data.test_images[start::CLIENTS]]
        return [(top["predictions"][0]["label"], top["predictions"][0]["probability"]) for top in tops]

    answers: list[tuple[str, float]] = [("", 0.0)] * len(data.test_images)
    with ThreadPoolExecutor(CLIENTS) as pool:
        for start, seen in enumerate(pool.map(share, range(CLIENTS))):
            answers[start::CLIENTS] = seen
    right = [label == labels[truth] for (label, _), truth in zip(answers, data.test_labels, strict=True)]
    accuracy = sum(right) / len(right)
    assert accuracy >= target
    assert accuracy == pytest.approx(published["accuracy"], abs=2e-4)
    assert reliability([confidence for _, confidence in answers], right) == pytest.approx(published["ece_15"], abs=1e-4)
