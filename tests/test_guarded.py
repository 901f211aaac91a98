"""loadtest.guarded: what keys and tokens cost is measured on services that do ask for them."""

import shutil
from pathlib import Path

import httpx
import pytest

from loadtest import contenders, guarded

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed: apt install wrk"),
]


def test_each_way_is_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside the open one, with few and many connections."""
    every = guarded.ways
    monkeypatch.setattr(guarded, "ways", lambda folder: dict(list(every(folder).items())[::4]))
    assert guarded.main(["--rounds", "1", "--seconds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["c=1", "open"],
        ["c=1", "token,"],
        ["c=64", "open"],
        ["c=64", "token,"],
    ]


def test_what_is_measured_is_guarded(tmp_path: Path) -> None:
    """Who shows nothing is refused, and limits are told to who shows what opens it."""
    way = guarded.ways(tmp_path)["key, limits"]
    with contenders.service(tmp_path, settings=way.settings) as service:
        assert httpx.get(f"{service.url}/v1/models").status_code == 401
        answer = httpx.get(f"{service.url}/v1/models", headers={"authorization": way.authorization})
        assert answer.headers["ratelimit"].startswith('"rate";r=99999;')
