"""What an answer must be like, and what the answers of a run add up to. Knows of HTTP bodies, not of locust."""

from collections import Counter
from itertools import pairwise
from math import fsum, isclose
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from loadtest.images import Image

DEFAULT_TOP_K = 3
# float32 probabilities: two that tie may come in either order, and all of them sum to 1 up to this.
TIE = 1e-6
SUM_TOLERANCE = 1e-4
# The same image in a batch of another size, or on another worker, goes through other kernels, which round differently.
SAME_PROBABILITY = 1e-3
SAME_SCORE = 1e-2
MIN_ACCURACY, MIN_ANSWERS = 0.9, 200


class WrongAnswer(Exception):
    """An answer that breaks the contract. The message is one of few, so that statistics can group by it."""


class Document(BaseModel):
    """A JSON object that may have more members than are checked here."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


class ModelId(Document):
    name: str
    sha256: str


class ServedModel(ModelId):
    labels: list[str]

    @property
    def id(self) -> ModelId:
        return ModelId(name=self.name, sha256=self.sha256)


class ModelList(Document):
    """The answer to GET /v1/models."""

    models: list[ServedModel]


class Prediction(Document):
    label: str
    class_index: int
    probability: float = Field(ge=0, le=1)


class OutOfDistribution(Document):
    score: float


class Result(Document):
    """The answer to an image."""

    request_id: str
    model: ModelId
    predictions: list[Prediction] = Field(min_length=1)
    ood: OutOfDistribution


class Refusal(Document):
    """The answer to what is no image: an RFC 9457 problem."""

    status: int
    title: str
    request_id: str


D = TypeVar("D", bound=Document)


def parse(kind: type[D], body: bytes) -> D:
    """Raises WrongAnswer for what is no JSON, or not of this kind."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the body"
        # Not the message: of what is no JSON it tells line and column, and statistics group by it.
        raise WrongAnswer(f"{place} is no part of a {kind.__name__}: {first['type']}") from error


def check_result(result: Result, model: ServedModel, request_id: str, top_k: int | None) -> None:
    """Raises WrongAnswer unless it is an answer of this model, to this request, of top_k classes (None: of all)."""
    if result.request_id != request_id:
        raise WrongAnswer("the request_id is not the one sent")
    if result.model != model.id:
        raise WrongAnswer("it is the answer of another model")
    if len(result.predictions) != min(top_k or len(model.labels), len(model.labels)):
        raise WrongAnswer("it has not as many predictions as asked for")
    if len({p.class_index for p in result.predictions}) < len(result.predictions):
        raise WrongAnswer("a class is predicted twice")
    if any(dict(enumerate(model.labels)).get(p.class_index) != p.label for p in result.predictions):
        raise WrongAnswer("a label does not belong to its class_index")
    if any(first.probability < second.probability - TIE for first, second in pairwise(result.predictions)):
        raise WrongAnswer("the predictions are not sorted by probability")
    if top_k is None and not isclose(fsum(p.probability for p in result.predictions), 1, abs_tol=SUM_TOLERANCE):
        raise WrongAnswer("the probabilities of all classes do not sum to 1")


def check_refusal(refusal: Refusal, request_id: str) -> None:
    """Raises WrongAnswer unless it refuses this request with 400."""
    if refusal.status != 400:
        raise WrongAnswer("the problem's status is not 400")
    if refusal.request_id != request_id:
        raise WrongAnswer("the problem's request_id is not the one sent")


def differ(one: Result, other: Result) -> bool:
    """Whether these cannot be answers to the same image. They may tell of differently many classes."""
    return _lacks(one, other) or _lacks(other, one) or not isclose(one.ood.score, other.ood.score, abs_tol=SAME_SCORE)


def _lacks(one: Result, other: Result) -> bool:
    """Whether a prediction of one is not in the other. One left out there has at most the least probability told."""
    told = {p.class_index: p.probability for p in other.predictions}
    least = min(told.values())
    return any(
        abs(p.probability - told.get(p.class_index, min(p.probability, least))) > SAME_PROBABILITY
        for p in one.predictions
    )


class Tally:
    """The answers of a run, of all users together."""

    def __init__(self) -> None:
        self._first: dict[tuple[str, int], Result] = {}
        self._answers: Counter[str] = Counter()
        self._right: Counter[str] = Counter()

    def add(self, image: Image, result: Result) -> None:
        """Count an answer that is right in form. Raises WrongAnswer when the image was answered differently before."""
        self._answers[image.model] += 1
        self._right[image.model] += result.predictions[0].label == image.label
        if differ(self._first.setdefault((image.model, image.index), result), result):
            raise WrongAnswer(f"image {image.index} was answered differently before")

    def accuracies(self) -> dict[str, tuple[float, int]]:
        """For each model the share of answers, in [0, 1], whose first label is right, and the number of answers."""
        return {model: (self._right[model] / n, n) for model, n in sorted(self._answers.items())}

    def too_low(self) -> list[str]:
        """The models whose accuracy is below what any network worth serving has."""
        return [model for model, (share, n) in self.accuracies().items() if n >= MIN_ANSWERS and share < MIN_ACCURACY]
