"""The way of nearly all requests: one small image that came whole, under a head that came before.

What a head asks for is read once, on the usual way in `service.http`. From then on a request is an image to decode, a
place in the queue and, when its batch is done, an answer to write: plain calls, with no coroutine and no task.
"""

import math
import time
from collections.abc import Callable, Sequence

from service.answers import Row
from service.batching import Job
from service.classifier import Classifier
from service.ids import new_request_id
from service.protocol import DirectExchange
from service.question import Question
from service.responses import Response

# Learns of each answer: request id, status, seconds.
Done = Callable[[str, int, float], None]


class DirectClassification:
    """Answers the requests of one head, which asks this question."""

    def __init__(
        self,
        question: Question,
        classifier: Classifier,
        max_bytes: int,
        given_id: str | None,
        done: Done,
        timeout_s: float = math.inf,
    ) -> None:
        """A body of more than `max_bytes` takes the usual way. `given_id` and `timeout_s` are the head's, if any."""
        self.question = question
        self.batcher = question.model.batcher
        self.done = done
        self._classifier = classifier
        self._input = question.model.bundle.manifest.input
        self._max_bytes = max_bytes
        self._given_id = given_id
        self._timeout_s = timeout_s

    def __call__(self, exchange: DirectExchange, body: bytes) -> bool:
        if len(body) > self._max_bytes:
            return False
        answer = _Answer(self, exchange, self._given_id or new_request_id())
        try:
            deadline = exchange.until = self.batcher.after(self._timeout_s)
            self.batcher.check_pace(self._timeout_s)
            pixels = self._classifier.pixels_at_once(body, self._input)
            if pixels is None:
                return False
            answer.job = self.batcher.enqueue(pixels[None], answer, deadline=deadline)
        except Exception as error:
            answer.set_exception(error)
        else:
            exchange.left = answer.leave
            self.batcher.run_full()
        return True


class _Answer:
    """One request's, which waits for its batch in a future's place."""

    __slots__ = ("_direct", "_exchange", "_over", "_request_id", "_started", "job")

    def __init__(self, direct: DirectClassification, exchange: DirectExchange, request_id: str) -> None:
        self._direct = direct
        self._exchange = exchange
        self._request_id = request_id
        self._started = time.perf_counter()
        self._over = False
        # Let go of when it is over, for the job knows who waits for it: no cycle is left to the garbage collector.
        self.job: Job[Row] | None = None

    def done(self) -> bool:
        return self._over

    def set_result(self, result: Sequence[Row | Exception], /) -> None:
        (row,) = result
        if isinstance(row, Exception):
            return self.set_exception(row)
        try:
            response = self._direct.question.response([row], False, self._request_id)
        except Exception as error:
            return self.set_exception(error)
        return self._send(response)

    def set_exception(self, exception: Exception, /) -> None:
        self._send(Response.failure(exception, self._request_id))

    def leave(self) -> None:
        """Nobody waits for it any more."""
        job = self._end()
        if job:
            self._direct.batcher.leave(job)

    def _send(self, response: Response) -> None:
        self._end()
        self._exchange.answer(response.status, response.lines(self._request_id), response.body)
        self._direct.done(self._request_id, response.status, time.perf_counter() - self._started)

    def _end(self) -> Job[Row] | None:
        self._over = True
        job, self.job = self.job, None
        return job
