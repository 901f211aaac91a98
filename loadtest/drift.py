"""The whole loop, measured: images change, labels tell of it, and a new calibration keeps the promise again.

`python -m loadtest.drift` serves a copy of a bundle, turns its test images by some degrees, posts some of them with
their labels until the alarm is raised, calibrates anew by those labels, has the service take that without stopping,
and tells what the calibration error of other turned images was before and after. Needs the whole data set.
"""

import argparse
import io
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from loadtest.contenders import Service, service
from models import MODELS
from models.datasets import DATASETS, Labels, load
from models.formats import DataError
from service.calibration import expected_calibration_error
from service.images import Pixels
from service.settings import BUNDLES

AT_ONCE = 50
RELOAD_TIMEOUT_S = 60.0
REPORT_TIMEOUT_S = 10.0

# A JSON object.
Result = dict[str, Any]


@dataclass(frozen=True)
class Turned:
    """Test images as PNG files, turned, and the names of their labels."""

    files: list[bytes]
    labels: list[str]

    def part(self, start: int, stop: int) -> "Turned":
        return Turned(self.files[start:stop], self.labels[start:stop])


@dataclass(frozen=True)
class Kept:
    """How a promise was kept: of n answers in distribution, and how many were out of it."""

    n: int
    strange: int
    accuracy: float
    confidence: float
    ece_15: float
    coverage: float
    promised: float

    def __str__(self) -> str:
        return (
            f"accuracy {self.accuracy:.2%}, promised {self.confidence:.2%}; ECE {self.ece_15:.2%}; "
            f"sets hold the label in {self.coverage:.2%}, promised {self.promised:.0%}; "
            f"{self.n:,} images, {self.strange:,} out of distribution"
        )


class Served:
    """A model of a running service, which takes labels."""

    def __init__(self, service: Service, model: str, client: httpx.Client) -> None:
        self.classify_url = service.classify_url(model)
        self._url = service.url
        self._model = f"{service.url}/v1/models/{model}"
        self._service = service
        self._client = client

    def answers(self, images: Turned) -> list[Result]:
        """In order."""
        found: list[Result] = []
        for start in range(0, len(images.files), AT_ONCE):
            form = [("file", file) for file in images.files[start : start + AT_ONCE]]
            response = self._client.post(self.classify_url, files=form)
            found += response.raise_for_status().json()["results"]
        return found

    def label(self, images: Turned) -> None:
        """Post some images and tell what they show."""
        labels = [
            {"request_id": answer["request_id"], "index": i % AT_ONCE, "label": label, "sampling": "random"}
            for i, (answer, label) in enumerate(zip(self.answers(images), images.labels, strict=True))
        ]
        told = self._client.post(f"{self._url}/v1/feedback", json={"feedback": labels}).raise_for_status().json()
        errors = [result["error"]["detail"] for result in told["results"] if "error" in result]
        if errors:
            raise RuntimeError(f"{len(errors)} labels were not taken, the first because: {errors[0]}")

    def drift(self, labels: int) -> Result:
        """Once so many labels are told of: the report may be a second old. Raises TimeoutError."""
        started = time.monotonic()
        while time.monotonic() - started < REPORT_TIMEOUT_S:
            found: Result = self._client.get(f"{self._model}/drift").raise_for_status().json()
            if found["labels"]["counted"] + found["labels"]["out_of_distribution"] >= labels:
                return found
            time.sleep(0.1)
        raise TimeoutError(f"the service does not tell of {labels:,} labels; see its log")

    def calibration(self) -> str:
        found: str = self._client.get(self._model).raise_for_status().json()["calibration"]["id"]
        return found

    def reload(self) -> float:
        """Have it take what is new; returns the seconds until every answer is by that."""
        before, started = self.calibration(), time.monotonic()
        assert self._service.process
        self._service.process.send_signal(signal.SIGHUP)
        # Each on a connection of its own, for workers change one after the other.
        while any(httpx.get(self._model).json()["calibration"]["id"] == before for _ in range(8)):
            if time.monotonic() - started > RELOAD_TIMEOUT_S:
                raise TimeoutError("the service goes on with the old calibration; see its log")
            time.sleep(0.1)
        return time.monotonic() - started


class Traffic:
    """Images posted one after the other meanwhile: how many, and how many were not answered with 200."""

    def __init__(self, url: str, files: Sequence[bytes]) -> None:
        self.posted = self.failed = 0
        self._url = url
        self._files = files
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._post)

    def __enter__(self) -> "Traffic":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _post(self) -> None:
        with httpx.Client(headers={"content-type": "image/png"}) as client:
            while not self._over.is_set():
                try:
                    ok = client.post(self._url, content=self._files[self.posted % len(self._files)]).status_code == 200
                except httpx.TransportError:
                    ok = False
                self.posted += 1
                self.failed += not ok


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.drift", description=__doc__)
    parser.add_argument("--model", default="digits", choices=sorted(MODELS))
    parser.add_argument("--degrees", type=float, default=20.0, help="default: %(default)s")
    parser.add_argument("--labels", type=int, default=2000, help="default: %(default)s")
    parser.add_argument("--images", type=int, default=5000, help="others, to measure with; default: %(default)s")
    given, more = parser.parse_known_args(argv)
    try:
        images = turned(given.model, given.degrees, given.labels + given.images)
    except DataError as error:
        print(f"drift: {error}", file=sys.stderr)
        return 2
    labelled, others = images.part(0, given.labels), images.part(given.labels, len(images.files))
    with tempfile.TemporaryDirectory() as folder:
        try:
            return run(given.model, labelled, others, Path(folder), more)
        except DataError as error:
            print(f"drift: {error}", file=sys.stderr)
            return 2


def run(model: str, labelled: Turned, others: Turned, folder: Path, more: Sequence[str]) -> int:
    """Exits 1 where no alarm is raised, a gate fails, or a request is lost."""
    bundles, feedback = folder / "bundles", f"sqlite:///{folder / 'labels.sqlite3'}"
    shutil.copytree(BUNDLES / model, bundles / model)
    settings = {"TRUEODDS_BUNDLES": str(bundles), "TRUEODDS_MODELS": model, "TRUEODDS_FEEDBACK": feedback}
    with service(folder, settings=settings) as running, httpx.Client(timeout=60) as client:
        served = Served(running, model, client)
        print(f"before: {kept(served, others)}", flush=True)
        for start in range(0, len(labelled.files), AT_ONCE):
            served.label(labelled.part(start, start + AT_ONCE))
        drift = served.drift(len(labelled.files))
        print(f"alarm at label {drift['alarm_at_label']} of {len(labelled.files)}: {drift['advice']}", flush=True)
        command = [
            sys.executable,
            "-m",
            "export",
            "recalibrate",
            model,
            "--bundles",
            str(bundles),
            "--feedback",
            feedback,
            *more,
        ]
        if not drift["alarm"] or subprocess.run(command, check=False).returncode:  # noqa: S603  a fixed program  # nosec B603
            return 1
        with Traffic(served.classify_url, others.files[:500]) as traffic:
            print(f"every worker has the new calibration after {served.reload():.1f} s", flush=True)
        print(f"{traffic.posted} requests meanwhile, {traffic.failed} not answered")
        print(f"after: {kept(served, others)}")
        return int(traffic.failed > 0)


def kept(served: Served, images: Turned) -> Kept:
    """How the promise is kept for these images, by the answers alone. Raises DataError where there is none."""
    answers = served.answers(images)
    rows = [_row(answer, label) for answer, label in zip(answers, images.labels, strict=True)]
    promising = [row for row in rows if row]
    if not promising:
        raise DataError(f"all of {len(rows):,} images are out of distribution; turn them by fewer degrees")
    confidences, right, covered, promised = (np.array(column) for column in zip(*promising, strict=True))
    error = expected_calibration_error(confidences, right)
    strange = len(rows) - len(right)
    return Kept(len(right), strange, right.mean(), confidences.mean(), error, covered.mean(), float(promised.mean()))


def _row(answer: Result, label: str) -> tuple[float, bool, bool, float] | None:
    """Confidence, whether the label is right, and in the set, and the coverage promised; None without a promise."""
    if answer["calibration"]["valid_for"] is None:
        return None
    top, found = answer["predictions"][0], answer["prediction_set"]
    return top["probability"], top["label"] == label, label in found["labels"], found["coverage"]


def turned(model: str, degrees: float, count: int) -> Turned:
    """So many test images, in an order of chance. Raises DataError."""
    data = load(MODELS[model].dataset)
    names = DATASETS[MODELS[model].dataset].labels
    order = np.random.default_rng(0).permutation(len(data.test_images))[:count]
    labels: Labels = data.test_labels[order]
    return Turned([_png(data.test_images[i], degrees) for i in order], [names[k] for k in labels])


def _png(image: Pixels, degrees: float) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).rotate(degrees, Image.Resampling.BILINEAR).save(file, "png")
    return file.getvalue()


if __name__ == "__main__":
    sys.exit(main())
