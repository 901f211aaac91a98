"""Users that post test images and check every answer: `locust -f loadtest/locustfile.py --host http://localhost:3000`.

A failure in the statistics is an answer that breaks the contract, never a single wrong label.
"""

import itertools
import logging
import time
import uuid
from collections.abc import Iterator
from typing import Any, ClassVar

import locust.stats
from locust import FastHttpUser, constant, events, task
from locust.env import Environment
from locust.exception import StopUser

from loadtest.answers import (
    DEFAULT_TOP_K,
    MIN_ACCURACY,
    ModelList,
    Refusal,
    Result,
    ServedModel,
    Tally,
    WrongAnswer,
    check_refusal,
    check_result,
    parse,
)
from loadtest.images import Image, read_images

MODELS = "/v1/models"
# How long a user waits when there was no answer at all: refused connections would otherwise be all that is measured.
PAUSE_S = 0.2

logger = logging.getLogger("loadtest")


class Client(FastHttpUser):
    """Posts one image after another, each as soon as the one before is answered."""

    wait_time = constant(0)
    images: ClassVar[list[Image]]
    tally: ClassVar[Tally]
    numbers: ClassVar[Iterator[int]]

    def on_start(self) -> None:
        """Ask for the models, and begin where no other user does. Stops the user when there is nothing to post."""
        self._models: dict[str, ServedModel] = {}
        with self.client.get(MODELS, name="models", catch_response=True) as response:
            try:
                _expect(response, 200, "application/json")
                self._models = {model.name: model for model in parse(ModelList, response.content).models}
            except WrongAnswer as reason:
                response.failure(str(reason))
        images = [image for image in self.images if image.model in self._models]
        if not images:
            raise StopUser
        self._turns = itertools.islice(itertools.cycle(images), next(self.numbers), None)

    @task(90)
    def classify(self) -> None:
        self._classify("classify", "", DEFAULT_TOP_K)

    @task(8)
    def classify_all(self) -> None:
        self._classify("classify, all classes", "?top_k=all", None)

    @task(2)
    def truncated(self) -> None:
        image = next(self._turns)
        with self._post(image, "truncated image", "", image.truncated) as response:
            try:
                _expect(response, 400, "application/problem+json", self._request_id)
                check_refusal(parse(Refusal, response.content), self._request_id)
                response.success()
            except WrongAnswer as reason:
                response.failure(str(reason))

    def _classify(self, kind: str, query: str, top_k: int | None) -> None:
        image = next(self._turns)
        with self._post(image, kind, query, image.content) as response:
            try:
                _expect(response, 200, "application/json", self._request_id)
                result = parse(Result, response.content)
                check_result(result, self._models[image.model], self._request_id, top_k)
                self.tally.add(image, result)
            except WrongAnswer as reason:
                response.failure(str(reason))

    def _post(self, image: Image, kind: str, query: str, content: bytes) -> Any:
        self._request_id = uuid.uuid4().hex
        response = self.client.post(
            f"{MODELS}/{image.model}/classify{query}",
            name=f"{image.model}: {kind}",
            data=content,  # type: ignore[arg-type]  # bytes are what it sends in the end
            headers={"Content-Type": "image/png", "X-Request-Id": self._request_id},
            catch_response=True,
        )
        if response.status_code == 0:
            time.sleep(PAUSE_S)  # locust has patched it: only this user sleeps
        return response


def _expect(response: Any, status: int, content_type: str, request_id: str = "") -> None:
    """Raises WrongAnswer unless the head of the response is as told. No request_id: any will do."""
    if response.status_code == 0:
        raise WrongAnswer(f"no answer: {type(response.error).__name__}")
    if response.status_code != status:
        raise WrongAnswer(f"status {response.status_code} instead of {status}")
    if response.headers.get("content-type", "").partition(";")[0] != content_type:
        raise WrongAnswer(f"the answer is not of type {content_type}")
    if request_id and response.headers.get("x-request-id") != request_id:
        raise WrongAnswer("X-Request-Id is not the one sent")


def round_ms(milliseconds: float) -> float:
    """Three significant digits of a response time; locust's own rounding would make 1.4 ms of 1 ms, and 150 of 147."""
    return float(f"{milliseconds:.3g}")


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def begin(**_: Any) -> None:
    Client.images = read_images()
    Client.tally = Tally()
    Client.numbers = itertools.count()
    locust.stats.bucket_response_time = round_ms  # type: ignore[assignment]  # "custom bucketing": locust's docs


@events.test_stop.add_listener  # type: ignore[untyped-decorator]
def judge(environment: Environment, **_: Any) -> None:
    """Log each model's accuracy over the run; one too low becomes a failure in locust's statistics."""
    for model, (accuracy, answers) in Client.tally.accuracies().items():
        logger.info("%s: accuracy %.4f over %d answers", model, accuracy, answers)
    for model in Client.tally.too_low():
        environment.stats.log_error("POST", f"{model}: classify", f"accuracy under {MIN_ACCURACY:g} over the run")
