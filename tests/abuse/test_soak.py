"""The soak driver, for a moment, and that it notices what it is there to notice."""

import json
from array import array
from pathlib import Path

import orjson
import pytest

from tests.abuse.soak.__main__ import main
from tests.abuse.soak.offences import refused
from tests.abuse.soak.questions import MIXED_UP, REFUSED, RIGHT, WRONG, Asked, Judge, Truth
from tests.abuse.soak.report import BROKEN, KEPT, TOO_SHORT, Run
from tests.abuse.soak.samples import Footprint, Sample
from tests.abuse.soak.tally import Tally
from tests.abuse.wire import Answer

TRUTH = Truth("7", 0.9, -12.0)


@pytest.mark.slow
def test_a_short_run_keeps_every_promise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Good answers right and under their ids, bad requests refused, nothing held when all have left."""
    status = main(["--minutes", "0.25", "--capacity-seconds", "4", "--every", "2", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert status == 0, printed
    report = json.loads((tmp_path / "soak.json").read_text())
    figures = report["figures"]
    assert figures["checked"] > 500
    assert figures["mixed_up"] == figures["wrong"] == figures["hung"] == 0
    assert len({kind for kind, *_ in report["outcomes"] if kind.startswith("bad: ")}) >= 15
    assert len(report["samples"]) >= 6
    assert (tmp_path / "soak.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_short_endurance_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ends when as many requests were asked as it was told to."""
    status = main(["--million", "--requests", "5000", "--every", "1", "--out", str(tmp_path)])
    assert status == 0, capsys.readouterr().out
    assert json.loads((tmp_path / "endurance.json").read_text())["figures"]["requests"] >= 5000


def answer(status: int = 200, request_id: bytes = b"me", body: bytes | None = None, truth: Truth = TRUTH) -> Answer:
    result = {
        "request_id": request_id.decode(),
        "predictions": [{"label": truth.label, "probability": truth.probability}],
        "ood": {"score": truth.energy},
    }
    head = b"http/1.1 %d x\r\nx-request-id: %b" % (status, request_id)
    return Answer(status, head, orjson.dumps(result) if body is None else body)


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        (answer(), RIGHT),
        (answer(truth=TRUTH._replace(energy=-12.00005)), RIGHT),
        (answer(truth=TRUTH._replace(energy=-12.01)), MIXED_UP),
        (answer(truth=TRUTH._replace(label="1")), MIXED_UP),
        (answer(truth=TRUTH._replace(probability=0.89)), MIXED_UP),
        (answer(request_id=b"you"), MIXED_UP),
        (answer(500, body=b"{}"), WRONG),
        (answer(503, body=b"{}"), WRONG),
        (Answer(503, b"http/1.1 503 x\r\nretry-after: 1", b"{}"), REFUSED),
    ],
)
def test_an_answer_is_judged(given: Answer, verdict: str) -> None:
    """Right only with this image's label, probability and energy, under this request's id."""
    assert Judge([TRUTH], b"me").one(given) == verdict


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        (answer(400, body=b'{"status": 400, "request_id": "me"}'), RIGHT),
        (answer(500, body=b'{"status": 500, "request_id": "me"}'), WRONG),
        (answer(400, body=b'{"status": 400, "request_id": "you"}'), WRONG),
        (answer(400, body=b'{"status": 400, "request_id": "me", "detail": "Traceback"}'), WRONG),
        (answer(400, body=b'{"status": 400, "request_id": "me", "detail": "evil"}'), WRONG),
        (answer(200), WRONG),
    ],
)
def test_a_refusal_is_judged(given: Answer, verdict: str) -> None:
    """Right only by its status, as a document under its own id, that tells nothing it should not."""
    assert refused(400, never=b"evil")(given) == verdict


def footprint(pss_mb: float = 100.0, descriptors: int = 50, threads: int = 10) -> Footprint:
    return Footprint((1, 2), (60.0, 60.0), pss_mb, descriptors, threads, 1.0)


def run(growth_mb: float = 0.0, slower: float = 1.0, after: Footprint | None = None, tally: Tally | None = None) -> Run:
    """An hour in which so many MB were added for each million of four million requests."""
    samples = [
        Sample(
            i * 36.0,
            i * 40_000,
            footprint(100 + growth_mb * i * 0.04),
            1000.0,
            1.0,
            2.0,
            array("f", [slower if i > 75 else 1.0] * 100),
        )
        for i in range(10, 101)
    ]
    sound = Tally(requests=4_000_000, checked=3_600_000)
    return Run(3600, 2000, 1100, samples, samples, footprint(), after or footprint(), tally or sound)


def test_a_sound_run_breaks_no_promise() -> None:
    """Each is told by it, and kept."""
    assert {promise.verdict for promise in run(growth_mb=15).promises()} == {KEPT}


@pytest.mark.parametrize(
    ("unsound", "promise"),
    [
        (run(growth_mb=25), "memory"),
        (run(slower=1.2), "p99"),
        (run(after=footprint(descriptors=51)), "descriptors"),
        (run(after=footprint(threads=11)), "threads"),
        (run(after=Footprint((1, 3), (60.0, 60.0), 100.0, 50, 10, 1.0)), "process"),
        (run(tally=Tally(requests=4_000_000, checked=3_600_000, mixed_up=1)), "mixed up"),
        (run(tally=Tally(requests=4_000_000, checked=99_999)), "mixed up"),
        (run(tally=Tally(requests=4_000_000, checked=3_600_000, wrong=1)), "bad request"),
        (run(tally=Tally(requests=4_000_000, checked=3_600_000, hung=1)), "hangs"),
        (run(tally=Tally(requests=4_000_000, checked=3_600_000, refused=5000)), "refused"),
    ],
)
def test_an_unsound_run_breaks_its_promise(unsound: Run, promise: str) -> None:
    """That one and no other."""
    broken = [each for each in unsound.promises() if each.verdict == BROKEN]
    assert len(broken) == 1
    assert promise in broken[0].what
    assert unsound.is_broken()


def test_a_short_run_does_not_tell_of_growth() -> None:
    """Nor of latency."""
    sound = run(growth_mb=1000, slower=9)
    short = Run(60, 2000, 1100, sound.samples[:5], sound.samples[:5], footprint(), footprint(), sound.tally)
    assert [each.verdict for each in short.promises()].count(TOO_SHORT) == 2
    assert not short.is_broken()


def test_the_tally_keeps_examples_of_what_went_wrong() -> None:
    """The answer as it came."""
    tally = Tally()
    tally.good(Asked("digits image", b"", Judge([TRUTH], b"me").one), answer(500, body=b"oops"), 0.001)
    assert tally.wrong == 1
    assert "oops" in tally.examples[0]
