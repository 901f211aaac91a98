"""What of an image an answer goes by: a heat map for the likeliest class of each, for whoever asks for one.

By its class activation map where a network has one, exactly; otherwise by occlusion, which takes 64 images more in the
queue, as bulk. Nothing is made before the first such request, and no other takes this way.
"""

import asyncio
import base64
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Literal, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt
import orjson

from service import occlusion
from service.activation import ActivationMaps, NoActivationMapError
from service.answers import Row
from service.audit import GRAPH
from service.backends.external_data import self_contained
from service.batching import Priority
from service.classifier import Classifier, Outcome, until
from service.errors import BodyTooLarge, Problem
from service.heat import Heat
from service.images import Pixels
from service.pulse import Pulse
from service.question import Question
from service.registry import ServedModel
from service.requests import Upload
from service.responses import Response
from service.seal import model_file

logger = logging.getLogger("trueodds")

# What a network's first map may take longer than others, in seconds: its graph is loaded once more.
LOADING_S = 60.0

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Explanation:
    """The heat of a class. Of an activation map, which sums to the logit but for `rest`, these two are told as well."""

    method: Literal["cam", "occlusion"]
    heat: Heat
    logit: float | None = None
    rest: float | None = None

    def encode(self, label: str) -> bytes:
        """As JSON."""
        values = self.heat.values
        document = {
            "method": self.method,
            "class": label,
            "png": base64.b64encode(self.heat.png()).decode(),
            "min": float(values.min()),
            "max": float(values.max()),
        }
        sums = {"logit": self.logit, "rest": self.rest}
        return orjson.dumps(document | {name: value for name, value in sums.items() if value is not None})


class Explainer:
    """Answers with explanations; of one request at most so many images are explained."""

    def __init__(self, classifier: Classifier, most: int, pulse: Pulse) -> None:
        self._classifier = classifier
        self._most = most
        self._pulse = pulse
        # One, so that what is explained takes no more than a core from what is classified.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="explain")
        self._maps: dict[str, ActivationMaps | None] = {}

    async def response(self, question: Question, upload: Upload, deadline: float, request_id: str) -> Response:
        """Raises Overloaded, BodyTooLarge, or the problem of a lone file."""
        model = question.model
        async with until(model, deadline, "explained") as last:
            pixels = await self._pixels(model, upload)
            if not upload.several and isinstance(pixels[0], Problem):
                raise pixels[0]
            outcomes = await self._outcomes(model, pixels, last)
            explained = [
                b""
                if isinstance(image, Problem) or isinstance(outcome, Problem)
                else await self._explained(model, image, outcome, last)
                for image, outcome in zip(pixels, outcomes, strict=True)
            ]
        return question.explained(outcomes, explained, upload.several, request_id)

    def close(self) -> None:
        self._thread.shutdown()

    async def _pixels(self, model: ServedModel, upload: Upload) -> Sequence[Pixels | Problem]:
        count = len(upload.files) if upload.tensor is None else len(upload.tensor)
        if count > self._most:
            raise BodyTooLarge(f"These are {count:,} images; {self._most:,} are explained in one request.")
        if upload.tensor is not None:
            return list(upload.tensor)
        return await self._classifier.decode(upload.files, model.bundle.manifest.input)

    async def _outcomes(self, model: ServedModel, pixels: Sequence[Pixels | Problem], deadline: float) -> list[Outcome]:
        sound = [image for image in pixels if not isinstance(image, Problem)]
        rows = iter(await self._classifier.classify_pixels(model, np.stack(sound), deadline) if sound else ())
        return [image if isinstance(image, Problem) else next(rows) for image in pixels]

    async def _explained(self, model: ServedModel, pixels: Pixels, row: Row, deadline: float) -> bytes:
        """Of the likeliest class, as JSON."""
        index, spec = int(row.order[0]), model.bundle.manifest.input
        by_activation = await self._in_thread(self._by_activation, model, pixels, index)
        if by_activation is not None:
            return by_activation
        copies = await self._in_thread(occlusion.covered, pixels, spec)
        left = [_sound(answer).probability(index) for answer in await model.classify(copies, Priority.BULK, deadline)]
        return await self._in_thread(_by_occlusion, model, row.probability(index), np.array(left), index)

    async def _in_thread(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(call, *args, **kwargs))

    def _by_activation(self, model: ServedModel, pixels: Pixels, index: int) -> bytes | None:
        with self._pulse.watching("explaining an image", LOADING_S):
            if model.name not in self._maps:
                self._maps[model.name] = _maps_of(model)
            maps = self._maps[model.name]
            if maps is None:
                return None
            found = maps.of(pixels, index)
        return Explanation("cam", found.heat, found.logit, found.rest).encode(_label(model, index))


def _by_occlusion(model: ServedModel, probability: float, left: npt.NDArray[np.float64], index: int) -> bytes:
    heat = occlusion.lost(probability, left, model.bundle.manifest.input)
    return Explanation("occlusion", heat).encode(_label(model, index))


def _label(model: ServedModel, index: int) -> str:
    return model.bundle.manifest.labels[index]


def _sound(answer: Row | Exception) -> Row:
    if isinstance(answer, Exception):
        raise answer
    return answer


def _maps_of(model: ServedModel) -> ActivationMaps | None:
    """None where it has none."""
    found = model.bundle
    try:
        content = self_contained(model_file(found.directory, GRAPH, found.seal))
        return ActivationMaps(content, found.manifest.input)
    except NoActivationMapError as reason:
        logger.info("%s is explained by occlusion: %s", model.name, reason)
    except Exception as error:
        # Of whatever a graph may be; and occlusion explains any.
        logger.warning("%s is explained by occlusion: %s", model.name, error)
    return None
