"""`make bench`: small real runs, and the accounting behind the figures."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from loadtest import bodies, contenders, history, plot, processes, tables, wrk
from loadtest.contenders import ContenderFailed, Service
from loadtest.figures import DISTURBANCE_CORES, Figures, Point, Sample, Spread
from loadtest.plan import Plan, parse
from loadtest.profile import Stage, table
from loadtest.wrk import Load, WrkFailed
from tests.conftest import ROOT

needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed: apt install wrk")
needs_proc = pytest.mark.skipif(not Path("/proc/stat").exists(), reason="only Linux has /proc")

RESULT = "RESULT requests=800 us=2000000 p50=1500 p90=2500 p99=9000 p999=12000 max=12500 errors=200\n"
BUSY_S = 0.5


def bench(*options: str, path: str | None = None) -> "subprocess.Popen[str]":
    environment = os.environ | ({"PATH": path} if path is not None else {})
    return subprocess.Popen(
        [sys.executable, "-m", "loadtest.bench", *options],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # What a shell starts in the background ignores Ctrl-C, and so would all that is started here.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )


def sample(contender: str, rate: float, number: int = 0, connections: int = 64, other_cores: float = 0) -> Sample:
    latencies = {"p50": 1.0, "p99": 2.0 + number, "p999": 3.0} if contender != "limit" else {}
    point = Point("single", "digits", connections)
    return Sample(number, point, contender, rate, 0.5, other_cores, 100.0, latencies_ms=latencies)


@pytest.fixture
def figures() -> Figures:
    """Two rounds at 1 and 64 connections, the service at 80 % and 90 % of the limit."""
    return Figures(
        [
            sample(contender, rate, number, connections)
            for connections in (1, 64)
            for number, rates in enumerate([{"service": 80, "limit": 100, "floor": 800}, {"service": 99, "limit": 110}])
            for contender, rate in rates.items()
        ]
    )


@pytest.fixture
def busy_tree() -> Iterator[subprocess.Popen[bytes]]:
    """An idle process whose child, in a session of its own, keeps one core busy."""
    child = "while True: pass"
    parent = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True)\n"
        "print('ready', flush=True)\nchild.wait()\n"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        yield process
        processes.stop(process, 5)


@needs_wrk
@needs_proc
@pytest.mark.slow
def test_a_small_run_prints_the_ratios_and_writes_history_and_plot(tmp_path: Path) -> None:
    """Every contender is measured, no request fails, nothing is left running."""
    options = ["--models=digits", "--concurrency=2", "--rounds=1", "--seconds=1", "--parts=single,bulk"]
    run = bench(*options, f"--out={tmp_path / 'made'}")
    output, complaints = run.communicate(timeout=180)
    assert run.returncode == 0, output + complaints
    assert "of the limit" in output
    (line,) = (tmp_path / "made" / "bench.jsonl").read_text().splitlines()
    document = json.loads(line)
    rows = {row["part"]: row for row in document["rows"]}
    single = rows["single"]
    assert (single["model"], single["connections"], single["errors"]) == ("digits", 2, 0)
    for figure in ("rate", "limit", "floor", "of_limit", "of_floor", "cpu_ms"):
        assert single[figure]["median"] > 0, figure
    for part in ("form", "tensor", "binary"):
        assert (rows[part]["of_limit"]["median"] > 0, rows[part]["errors"]) == (True, 0), part
    assert 0 < single["latencies_ms"]["p50"]["median"] <= single["latencies_ms"]["p999"]["median"]
    for whole in ("cold_start_s", "peak_rss_mib", "pss_mib"):
        assert document[whole]["median"] > 0, whole
    assert document["hardware"]["cores"] >= 1
    assert {"python", "onnxruntime", "wrk"} <= document["versions"].keys()
    assert "<svg" in (tmp_path / "made" / "bench.svg").read_text()


def running(pid: int) -> bool:
    """Not one that has ended and that its new parent has not waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@needs_wrk
@needs_proc
@pytest.mark.slow
def test_ctrl_c_leaves_nothing_running(tmp_path: Path) -> None:
    """The service, its workers and the other contenders end with the benchmark; nothing is written."""
    run = bench("--models=digits", "--seconds=600", f"--out={tmp_path}")
    deadline = time.monotonic() + 60
    while len(started := processes.tree(run.pid)) < 4:
        assert run.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    _, complaints = run.communicate(timeout=60)
    assert run.returncode == 130
    assert complaints.strip().endswith("bench: interrupted; nothing is written")
    assert not [pid for pid in started if running(pid)]
    assert not (tmp_path / "bench.jsonl").exists()


@pytest.mark.slow
@needs_proc
def test_without_wrk_the_remedy_is_told(tmp_path: Path) -> None:
    """Before anything is started."""
    run = bench(f"--out={tmp_path}", path=str(tmp_path))
    output, complaints = run.communicate(timeout=60)
    assert (run.returncode, output) == (2, "")
    assert (
        complaints.strip()
        == "bench: " + "wrk, which makes the load, is not installed; on Debian or Ubuntu: apt install wrk"
    )


def test_a_service_that_does_not_start_shows_why(tmp_path: Path) -> None:
    """A taken port, in the service's own words."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(ContenderFailed, match=f"cannot listen on 127.0.0.1:{port}"):
            contenders.service(tmp_path, port).__enter__()


def test_nobody_at_the_given_address_is_told() -> None:
    """Neither a list of models nor an answer."""
    service = Service(f"http://127.0.0.1:{contenders.free_port()}")
    with pytest.raises(ContenderFailed, match="no TrueOdds answers at"):
        service.models()
    assert not service.ready()
    assert service.pids == []


@pytest.mark.parametrize(("status", "answer"), [(500, b"{}"), (200, b"{}"), (200, b"<html>"), (200, b"[]")])
def test_wrong_answers_are_not_measured(status: int, answer: bytes, tmp_path: Path) -> None:
    """Neither other statuses nor documents without predictions."""

    class Wrong(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with HTTPServer(("127.0.0.1", 0), Wrong) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with pytest.raises(ContenderFailed, match="digits answers wrongly"):
            Service(f"http://127.0.0.1:{server.server_port}").check("digits", bodies.single("digits", tmp_path))
        thread.join()


def test_wrks_figures_are_read() -> None:
    """Errors count neither as answers nor in the rate; latencies are in ms."""
    load = Load.parse("Running 2s test\n" + RESULT)
    assert (load.requests, load.errors, load.seconds, load.rate) == (800, 200, 2, 300)
    assert (load.p50_ms, load.p90_ms, load.p99_ms, load.p999_ms, load.max_ms) == (1.5, 2.5, 9, 12, 12.5)


def test_wrks_complaints_are_passed_on() -> None:
    """Where there are no figures, what it said instead."""
    with pytest.raises(WrkFailed, match="unable to connect"):
        Load.parse("unable to connect to 127.0.0.1:1 Connection refused\n")


@pytest.mark.slow
@needs_wrk
def test_wrk_asks_for_what_a_body_says(tmp_path: Path) -> None:
    """By an Accept header, and by none where JSON will do."""
    seen: list[tuple[str | None, str | None]] = []

    class Listening(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append((self.headers["content-type"], self.headers["accept"]))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Quiet."""

    plain = bodies.single("digits", tmp_path)
    with HTTPServer(("127.0.0.1", 0), Listening) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        for body in (plain, replace(plain, accept="application/vnd.trueodds.predictions")):
            with wrk.Wrk(f"http://127.0.0.1:{server.server_port}/", body, 1, 1) as run:
                run.load()
        server.shutdown()
        thread.join()
    assert (seen[0], seen[-1]) == (("image/png", None), ("image/png", "application/vnd.trueodds.predictions"))


@pytest.mark.slow
@needs_wrk
@needs_proc
def test_the_floor_answers_as_many_bytes_as_asked_for(tmp_path: Path) -> None:
    """By several processes on one socket, whose CPU time is seen."""
    body = bodies.single("digits", tmp_path)
    with contenders.floor(2, tmp_path) as floor:
        status, answer = Service(floor.url(0).rpartition("/")[0])._ask("POST", "/321", b"body")
        assert (status, len(json.loads(answer))) == (200, 319)
        assert len(floor.pids) == 1 + 2
        with processes.Watch(floor.pids) as watch, wrk.Wrk(floor.url(900), body, 4, 1) as run:
            load = run.load()
    assert load.requests > 100
    assert load.errors == 0
    assert 0 < load.p50_ms <= load.p99_ms <= load.p999_ms
    assert watch.usage.cpu_s > 0


@needs_proc
def test_cpu_and_memory_of_all_descendants_are_counted(busy_tree: subprocess.Popen[bytes]) -> None:
    """A child in another session too; what it takes is not other load."""
    pids = processes.tree(busy_tree.pid)
    assert len(pids) == 2
    with processes.Watch(pids) as watch:
        time.sleep(BUSY_S)
    usage = watch.usage
    # The machine may be busy, so the child may get less than a core, but hardly more.
    assert 0.1 * BUSY_S < usage.cpu_s < 1.2 * usage.seconds
    assert usage.seconds >= BUSY_S
    assert usage.peak_rss_mib > 5
    assert 0 < processes.pss_mib(pids) <= processes.rss_mib(pids)


@needs_proc
def test_other_load_is_seen(busy_tree: subprocess.Popen[bytes]) -> None:
    """What another process takes while nothing of ours is watched."""
    with processes.Watch([]) as watch:
        time.sleep(BUSY_S)
    assert watch.usage.other_cores > DISTURBANCE_CORES
    assert (watch.usage.cpu_s, watch.usage.peak_rss_mib) == (0, 0)


@needs_proc
def test_stopping_reaches_every_descendant(busy_tree: subprocess.Popen[bytes]) -> None:
    """A child that its parent leaves behind too."""
    pids = processes.tree(busy_tree.pid)
    processes.stop(busy_tree, 5)
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() and processes._stat(pid)[0] != "Z" for pid in pids):  # type: ignore[index]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_ratios_are_taken_round_by_round(figures: Figures) -> None:
    """80 of 100 and 99 of 110: 85 % in the middle."""
    row = figures.row(Point("single", "digits", 64))
    assert row.of_limit
    assert (row.of_limit.low, row.of_limit.high) == (0.8, 0.9)
    assert row.of_limit.median == pytest.approx(0.85)
    assert row.of_floor == Spread(0.1, 0.1, 0.1)
    assert row.rate == Spread(89.5, 80, 99)
    assert row.latencies_ms["p99"] == Spread(2.5, 2, 3)
    assert (row.rounds, row.disturbed, row.errors) == (2, False, 0)


def test_disturbed_rounds_are_left_out_unless_all_are() -> None:
    """And then that is marked."""
    calm = [sample("service", 90, 0), sample("limit", 100, 0)]
    disturbed = [sample("service", 10, 1), sample("limit", 100, 1, other_cores=DISTURBANCE_CORES + 0.01)]
    point = Point("single", "digits", 64)
    both, only = Figures(calm + disturbed).row(point), Figures(disturbed).row(point)
    assert (both.of_limit, both.rounds, both.disturbed) == (Spread(0.9, 0.9, 0.9), 1, False)
    assert (only.of_limit, only.rounds, only.disturbed) == (Spread(0.1, 0.1, 0.1), 1, True)
    assert "| ~ 64 |" in tables.single(Figures(disturbed), "digits")


def test_points_are_compared_round_by_round() -> None:
    """Calm rounds alone where there are any."""
    few, many = Point("single", "digits", 64), Point("single", "digits", 1024)
    calm = [sample("service", 100, 0), sample("service", 90, 0, 1024)]
    disturbed = [sample("service", 100, 1), sample("service", 10, 1, 1024, other_cores=1)]
    assert Figures(calm + disturbed).compared(many, few) == Spread(0.9, 0.9, 0.9)
    assert Figures(disturbed).compared(many, few) == Spread(0.1, 0.1, 0.1)


def test_the_table_tells_ratios_first(figures: Figures) -> None:
    """Medians with what they lie between."""
    head, _, first, _ = tables.single(figures, "digits").splitlines()
    assert head.split()[:4] == ["|", "c", "|", "of"]
    cells = [cell.strip() for cell in first.split("|")]
    assert cells[1:4] == ["1", "85 % (80–90)", "10 %"]
    assert cells[4] == "90 (80–99)"


def test_history_grows_by_whole_lines(tmp_path: Path) -> None:
    """What is there stays; no partial file is left."""
    path = tmp_path / "made" / "bench.jsonl"
    for number in range(2):
        history.append(path, {"number": number})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"number": 0}, {"number": 1}]
    with pytest.raises(ValueError, match="JSON compliant"):
        history.append(path, {"number": float("nan")})
    assert len(path.read_text().splitlines()) == 2
    assert [child.name for child in path.parent.iterdir()] == ["bench.jsonl"]


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "start"), [("svg", b"<?xml"), ("png", b"\x89PNG")])
def test_a_plot_is_written(figures: Figures, suffix: str, start: bytes, tmp_path: Path) -> None:
    """In the format its name asks for."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    path = tmp_path / f"bench.{suffix}"
    plot.write(figures, path)
    assert path.read_bytes().startswith(start)
    assert list(tmp_path.iterdir()) == [path]


def test_without_matplotlib_the_remedy_is_told(
    figures: Figures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is needed for nothing else."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(plot.PlotUnavailable, match="pip install matplotlib"):
        plot.write(figures, tmp_path / "bench.svg")


def test_the_command_line_makes_a_plan() -> None:
    """--quick is a set of defaults that the other options overrule."""
    assert parse([]) == Plan()
    assert parse(["--quick", "--rounds=2"]) == Plan(connections=(1, 64), rounds=2, seconds=1)
    plan = parse(["--models=digits, cifar10", "--concurrency=16,1", "--url=http://localhost:3000/", "--parts=bulk"])
    assert (plan.models, plan.connections, plan.url) == (("digits", "cifar10"), (1, 16), "http://localhost:3000")
    assert plan.parts == ("bulk",)


@pytest.mark.parametrize("option", ["--concurrency=0", "--rounds=x", "--url=localhost", "--parts=all"])
def test_a_senseless_option_is_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By its name."""
    with pytest.raises(SystemExit) as refused:
        parse([option])
    assert refused.value.code == 2
    assert option.partition("=")[0] in capsys.readouterr().err


def test_shares_of_a_profile_are_of_the_sum() -> None:
    """A stage that could not be measured counts nothing."""
    lines = table([Stage("server", None, None), Stage("decode", 30, 10), Stage("inference", 90, 10)], 16).splitlines()
    assert lines[2] == "| server | – | – | – | – |"
    assert lines[3] == "| decode | 30.0 | 25 % | 10.0 | 50 % |"
    assert lines[-1] == "| sum | 120.0 | 100 % | 20.0 | 100 % |"


@pytest.mark.slow
def test_the_profile_accounts_for_every_stage() -> None:
    """Of a few requests, with Python's own profiler behind."""
    run = subprocess.run(
        [sys.executable, "-m", "loadtest.profile", "--model=digits", "--requests=64", "--cpu"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    for stage in (
        "read header",
        "decode",
        "to pixels",
        "batch hop",
        "inference",
        "rows",
        "encode",
        "metrics",
        "the rest",
        "sum",
    ):
        assert f"| {stage} |" in run.stdout
    assert "Ordered by: internal time" in run.stdout


def test_an_unknown_model_is_no_profile() -> None:
    """One line, no traceback."""
    command = [sys.executable, "-m", "loadtest.profile", "--model=nothing"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stderr) == (2, "profile: there are no test images of a model 'nothing'\n")
