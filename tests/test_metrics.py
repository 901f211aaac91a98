"""service.metrics: nothing is counted twice, nothing forgotten, and all of it as prometheus_client would."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from service import metrics
from service.batching import BatchReport
from service.metrics import SECONDS, Metrics
from tests.conftest import ROOT

AMOUNTS = st.one_of(st.sampled_from([0.0, *SECONDS, 11.0]), st.floats(0, 20))


def samples(told: bytes, name: str) -> list[bytes]:
    """The lines of one metric, but for the time it was made."""
    return [line for line in told.splitlines() if line.startswith(name.encode()) and b"_created" not in line]


def noted() -> Metrics:
    return Metrics(registry=CollectorRegistry())


@given(st.lists(st.lists(AMOUNTS, min_size=1, max_size=20), max_size=5))
@settings(deadline=None, max_examples=100)
def test_counting_together_is_counting_one_by_one(bursts: list[list[float]]) -> None:
    """Bounds of buckets included, in whatever portions it is counted."""
    registry, whole = CollectorRegistry(), noted()
    expected = Histogram("trueodds_request_duration_seconds", "", ("model",), buckets=SECONDS, registry=registry)
    for burst in bursts:
        for seconds in burst:
            whole.request("digits", 200, seconds)
            expected.labels("digits").observe(seconds)
        whole.count()
    name = "trueodds_request_duration_seconds_"
    found, right = (samples(told, name) for told in (whole.exposition(), generate_latest(registry)))
    assert [line for line in found if b"_sum" not in line] == [line for line in right if b"_sum" not in line]
    sums = [[float(line.split()[1]) for line in lines if b"_sum" in line] for lines in (found, right)]
    assert sums[0] == pytest.approx(sums[1])


def test_requests_are_counted_by_model_and_status() -> None:
    """And batches with all that is told of them."""
    whole = noted()
    for model, status in (("digits", 200), ("digits", 200), ("digits", 400), ("", 404)):
        whole.request(model, status, 0.001)
    whole.batch("digits", BatchReport(8, 0.01, 0.1))
    whole.count()
    whole.count()
    told = whole.exposition()
    assert b'trueodds_requests_total{model="digits",status="200"} 2.0' in told
    assert b'trueodds_requests_total{model="digits",status="400"} 1.0' in told
    assert b'trueodds_requests_total{model="",status="404"} 1.0' in told
    for name, total in (("batch_size", 8.0), ("batch_wait_seconds", 0.01), ("inference_seconds", 0.1)):
        assert b'trueodds_%b_sum{model="digits"} %b' % (name.encode(), str(total).encode()) in told
        assert b'trueodds_%b_count{model="digits"} 1.0' % name.encode() in told


@pytest.mark.parametrize("note", ["request", "batch"])
def test_what_is_noted_is_counted_soon(note: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without anybody asking, again and again, though nothing but batches or requests should come."""
    monkeypatch.setattr(metrics, "COUNT_AFTER_S", 0.001)

    async def scenario() -> None:
        whole = noted()
        for number in range(1, 4):
            if note == "request":
                whole.request("digits", 200, 0.001)
            else:
                whole.batch("digits", BatchReport(1, 0.01, 0.1))
            await asyncio.sleep(0.02)
            name = "request_duration_seconds" if note == "request" else "batch_size"
            assert b'trueodds_%b_count{model="digits"} %d.0' % (name.encode(), number) in whole.exposition()

    asyncio.run(scenario())


def test_a_worker_that_has_just_begun_does_not_hide_the_others(tmp_path: Path) -> None:
    """Its files are there and empty; what the others count is told."""
    program = f"""
import sys
from pathlib import Path
from service.metrics import Metrics
folder = Path({str(tmp_path)!r})
metrics = Metrics(folder)
metrics.request("digits", 200, 0.001)
metrics.count()
for kind in ("counter", "histogram", "gauge_all"):
    (folder / f"{{kind}}_1.db").touch()
sys.stdout.buffer.write(metrics.exposition())
"""
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert 'trueodds_requests_total{model="digits",status="200"} 1.0' in ended.stdout
