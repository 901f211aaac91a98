"""loadtest.drift: the loop from changed images to a promise that is kept again, on a small scale."""

import re
import subprocess
import sys
import time
from typing import Any

import httpx
import numpy as np
import pytest

from loadtest.contenders import Service
from loadtest.drift import Served, Traffic, Turned, kept
from models.formats import DataError
from tests.conftest import ROOT, Server, data_dir, environment, fixtures

IMAGES = fixtures("digits")[:60]
POSTED = Turned([file for file, _ in IMAGES], [label for _, label in IMAGES])


class Answering(Served):
    """Whose answers are known."""

    def __init__(self, found: list[dict[str, Any]]) -> None:
        self.found = found

    def answers(self, images: Turned) -> list[dict[str, Any]]:
        return self.found


def answer(label: str, p: float, members: list[str], valid: bool = True) -> dict[str, Any]:
    return {
        "predictions": [{"label": label, "probability": p}],
        "prediction_set": {"labels": members, "coverage": 0.95},
        "calibration": {"valid_for": "in_distribution" if valid else None},
    }


def test_the_promise_is_measured_where_there_is_one() -> None:
    """Of answers in distribution: accuracy, confidence, calibration error and coverage; the rest is counted."""
    found = [
        answer("1", 0.9, ["1"]),
        answer("2", 0.9, ["2"]),
        answer("3", 0.5, ["3", "4"]),
        answer("4", 0.7, ["4"], valid=False),
    ]
    told = kept(Answering(found), Turned([b""] * 4, ["1", "1", "4", "4"]))
    assert (told.n, told.strange) == (3, 1)
    assert told.accuracy == pytest.approx(1 / 3)
    assert told.confidence == pytest.approx(2.3 / 3)
    assert told.ece_15 == pytest.approx((0.8 + 0.5) / 3)
    assert told.coverage == pytest.approx(2 / 3)
    assert told.promised == pytest.approx(0.95)
    assert str(told).startswith("accuracy 33.33%, promised 76.67%; ECE 43.33%; sets hold the label in 66.67%")


def test_images_that_are_all_strange_are_told() -> None:
    """There is no promise to measure."""
    with pytest.raises(DataError, match="all of 1 images are out of distribution"):
        kept(Answering([answer("4", 0.7, ["4"], valid=False)]), Turned([b""], ["4"]))


@pytest.mark.slow
def test_answers_come_in_order_and_labels_reach_them(server: Server) -> None:
    """More than go into one request; a label for each."""
    with httpx.Client(timeout=60) as client:
        served = Served(Service(server.url), "digits", client)
        found = served.answers(POSTED)
        right = [one["predictions"][0]["label"] == label for one, label in zip(found, POSTED.labels, strict=True)]
        assert np.mean(right) > 0.9

        def labels(least: int) -> int:
            told = served.drift(least)["labels"]
            return int(told["counted"] + told["out_of_distribution"])

        # Of other tests with this service.
        time.sleep(1.1)
        before = labels(0)
        served.label(POSTED)
        assert labels(before + len(IMAGES)) == before + len(IMAGES)
        with pytest.raises(RuntimeError, match="labels were not taken, the first because"):
            served.label(Turned(POSTED.files[:2], ["owl", "cow"]))


@pytest.mark.slow
def test_traffic_counts_what_is_lost(server: Server) -> None:
    """Nothing where all is well; everything where nobody answers or the answer is a refusal."""
    with Traffic(f"{server.url}/v1/models/digits/classify", POSTED.files) as well:
        time.sleep(0.3)
    assert well.posted > 3
    assert well.failed == 0
    for url in (f"{server.url}/v1/models/owls/classify", "http://127.0.0.1:9/classify"):
        with Traffic(url, POSTED.files) as ill:
            time.sleep(0.2)
        assert ill.failed == ill.posted > 0


def looped(tmp_path: Any, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loadtest.drift", "--images", "300", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment(tmp_path, {}), capture_output=True, text=True, timeout=240, check=False
    )


needs_data = pytest.mark.skipif(data_dir() is None, reason="needs the full MNIST data set in DATA_DIR")


@pytest.mark.slow
@needs_data
def test_without_an_alarm_nothing_is_calibrated_anew(tmp_path: Any) -> None:
    """Images as they were: exit 1, and no word of another calibration."""
    ended = looped(tmp_path, "--degrees", "0", "--labels", "200")
    assert ended.returncode == 1, ended.stderr
    assert "alarm at label None of 200" in ended.stdout
    assert "No label counts yet" not in ended.stdout
    assert "after:" not in ended.stdout


@pytest.mark.slow
@needs_data
def test_a_calibration_that_would_not_keep_the_promise_is_not_served(tmp_path: Any) -> None:
    """By −60° a 6 is taken for a 5, which no temperature mends: exit 1, with the gate's figures."""
    ended = looped(tmp_path, "--degrees", "-60", "--labels", "6000", "--risk", "0.5")
    assert ended.returncode == 1
    assert re.search(r"alarm at label \d+ of 6000", ended.stdout)
    assert re.search(
        r"^recalibrate: .*(classwise ECE|ECE-15) is \d.*, by chance alone it would be at most", ended.stderr, re.M
    )
    assert "after:" not in ended.stdout


@pytest.mark.slow
@needs_data
def test_labels_that_are_too_few_are_told(tmp_path: Any) -> None:
    """Of images so odd that most are out of distribution: exit 1, with how many are wanting."""
    ended = looped(tmp_path, "--degrees", "-60", "--labels", "400", "--risk", "0.5")
    assert ended.returncode == 1
    assert re.search(r"alarm at label \d+ of 400", ended.stdout)
    assert re.search(
        r"^recalibrate: of random answers in distribution under \S+ \d+ have a label; 200 ", ended.stderr, re.M
    )
    assert "after:" not in ended.stdout
