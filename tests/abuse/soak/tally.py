"""What became of the requests."""

from array import array
from collections import Counter
from dataclasses import dataclass, field

from tests.abuse.soak.questions import MIXED_UP, REFUSED, RIGHT, WRONG, Asked
from tests.abuse.wire import Answer, Ended

# So many of those that went wrong are told in full.
EXAMPLES = 20
LONE = "digits image"


@dataclass
class Tally:
    """What became of the requests. `lone_ms` are the latencies of lone small good ones."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    lone_ms: "array[float]" = field(default_factory=lambda: array("f"))
    requests: int = 0
    checked: int = 0
    mixed_up: int = 0
    refused: int = 0
    wrong: int = 0
    hung: int = 0
    examples: list[str] = field(default_factory=list)

    def good(self, asked: Asked, answer: Answer, seconds: float) -> None:
        verdict = asked.judge(answer)
        self._note(asked.kind, answer, verdict)
        self.checked += verdict in (RIGHT, MIXED_UP)
        if asked.kind == LONE:
            self.lone_ms.append(seconds * 1000)

    def bad(self, asked: Asked, answer: Answer) -> None:
        self._note("bad: " + asked.kind, answer, asked.judge(answer))

    def event(self, kind: str, outcome: str) -> None:
        """Of a client that is not, or not only, answered."""
        self.outcomes["bad: " + kind, outcome] += 1

    def broken(self, kind: str, outcome: str) -> None:
        """Something that should not have happened."""
        self.wrong += 1
        self._example(f"{kind}: {outcome}")
        self.event(kind, outcome)

    def hangs(self, asked: Asked) -> None:
        self.hung += 1
        self.outcomes[asked.kind, "hung"] += 1
        self._example(f"{asked.kind} hung: {asked.data[:200]!r}")

    def ended(self, asked: Asked, error: Ended) -> None:
        """The connection ended in an answer's place."""
        self.wrong += 1
        self.outcomes[asked.kind, "no answer"] += 1
        self._example(f"{asked.kind} was not answered ({error}): {asked.data[:200]!r}")

    def _note(self, kind: str, answer: Answer, verdict: str) -> None:
        self.requests += 1
        self.outcomes[kind, str(answer.status)] += 1
        self.refused += verdict == REFUSED
        self.mixed_up += verdict == MIXED_UP
        self.wrong += verdict == WRONG
        if verdict in (WRONG, MIXED_UP):
            self._example(f"{kind} {verdict}: {answer.head.decode('latin-1')!r} {answer.body[:500]!r}")

    def _example(self, text: str) -> None:
        if len(self.examples) < EXAMPLES:
            self.examples.append(text)
