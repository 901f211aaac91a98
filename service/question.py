"""What a classification asks for, and the response that answers it."""

from collections.abc import Sequence
from dataclasses import dataclass

from service.answers import Options
from service.binary import MEDIA_TYPE
from service.classifier import Outcome
from service.errors import Problem
from service.registry import ServedModel
from service.responses import JSON, Response, encode


@dataclass(frozen=True)
class Question:
    """A model, the options asked for, and whether the answer is to be binary rather than JSON."""

    model: ServedModel
    options: Options
    binary: bool

    def response(self, outcomes: Sequence[Outcome], several: bool, request_id: str) -> Response:
        """`several` tells that the answer is a list, though of one."""
        if self.model.memory:
            self.model.memory.remember(outcomes, request_id)
        if self.binary:
            return Response(200, MEDIA_TYPE, self.model.binary_answers.encode(outcomes, self.options, request_id))
        if not several:
            return Response(200, JSON, self._result(outcomes[0], request_id))
        results = [self._result(outcome, request_id) for outcome in outcomes]
        return Response(200, JSON, b'{"results":[%b]}' % b",".join(results))

    def explained(
        self, outcomes: Sequence[Outcome], explanations: Sequence[bytes], several: bool, request_id: str
    ) -> Response:
        """As `response`, in JSON, each result with its explanation, a JSON object; a problem has none."""
        if self.model.memory:
            self.model.memory.remember(outcomes, request_id)
        results = [
            result if isinstance(outcome, Problem) else b'%b,"explanation":%b}' % (result[:-1], explanation)
            for outcome, explanation in zip(outcomes, explanations, strict=True)
            for result in (self._result(outcome, request_id),)
        ]
        return Response(200, JSON, b'{"results":[%b]}' % b",".join(results) if several else results[0])

    def _result(self, outcome: Outcome, request_id: str) -> bytes:
        """A result object, or the problem in its place."""
        if isinstance(outcome, Problem):
            return encode({"error": outcome.document(request_id)})
        return self.model.answers.encode(outcome, self.options, request_id)
