"""The service when processes, clocks, disks, logs and clients fail: real processes, a real socket."""

import asyncio
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from PIL import Image

from service.board import BOARD, Pulses
from service.settings import BUNDLES
from tests.conftest import ROOT, Server, committed, environment, fixtures, free_port, serving, stop, wait_until_ready

pytestmark = pytest.mark.slow

TWO = {"TRUEODDS_WORKERS": "2"}
IMAGE, _ = fixtures("digits")[0]
HEAD = "POST /v1/models/digits/classify HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n"
REQUEST = (HEAD % len(IMAGE)).encode() + IMAGE


def address(server: Server) -> tuple[str, int]:
    return "127.0.0.1", int(server.url.rsplit(":", 1)[1])


def children(pid: int) -> list[int]:
    """Those that live."""
    try:
        found = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    except FileNotFoundError:
        return []
    return [child for child in found if alive(child)]


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    try:
        return ") Z " not in stat.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def seconds_until(true: Callable[[], bool], limit_s: float) -> float:
    started = time.monotonic()
    while not true():
        assert time.monotonic() - started < limit_s, f"not within {limit_s} s"
        time.sleep(0.02)
    return time.monotonic() - started


def beating(server: Server) -> int:
    """How many workers serve: their pulses are on the board, in the folder that they share."""
    for pid in children(server.pid):
        with suppress(OSError):
            variables = dict(
                each.partition(b"=")[::2] for each in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            )
            # In a container it has a root of its own.
            pulses = Pulses(Path(f"/proc/{pid}/root{variables[b'PROMETHEUS_MULTIPROC_DIR'].decode()}") / BOARD)
            before = [pulses.of(number) for number in range(1, 9)]
            time.sleep(0.25)
            return sum(pulses.of(number) != pulse for number, pulse in enumerate(before, 1))
    return 0


def settled(server: Server, number: int) -> list[int]:
    """Process ids of so many workers, all of which serve."""
    seconds_until(lambda: len(children(server.pid)) == number == beating(server), 10)
    return children(server.pid)


def connections(pid: int) -> int:
    """How many clients that process has accepted and still keeps."""
    # Of the network that the process sees, for a container has one of its own, with a port of its own: the one that is
    # listened at (0A). The columns: second the local address, fourth the state (01 is established), tenth the inode.
    tables = (Path(f"/proc/{pid}/net/{name}") for name in ("tcp", "tcp6"))
    rows = [row.split() for table in tables if table.exists() for row in table.read_text().splitlines()[1:]]
    own = {str(each.readlink()) for each in Path(f"/proc/{pid}/fd").iterdir()}
    ports = {row[1].rpartition(":")[2] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in own}
    return sum(row[3] == "01" and row[1].rpartition(":")[2] in ports and f"socket:[{row[9]}]" in own for row in rows)


def ask(server: Server, timeout_s: float = 10.0) -> int:
    """The status of one request on a connection of its own; 0 where there is no answer."""
    try:
        with socket.create_connection(address(server), timeout=timeout_s) as client:
            client.sendall(REQUEST)
            return int(client.recv(65536).split()[1])
    except (OSError, IndexError):
        return 0


def report(capsys: pytest.CaptureFixture[str], line: str) -> None:
    with capsys.disabled():
        print(f"\n  {line}")


class Crowd:
    """Clients that ask again and again over kept connections, as HTTP has it, and count what becomes of it."""

    def __init__(self, server: Server, clients: int) -> None:
        self.outcomes: Counter[str] = Counter()
        self._address = address(server)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._all(clients)))
        self._stopped = False

    def __enter__(self) -> "Crowd":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped = True
        self._thread.join(30)

    async def _all(self, clients: int) -> None:
        await asyncio.gather(*(self._one() for _ in range(clients)))

    async def _one(self) -> None:
        while not self._stopped:
            try:
                reader, writer = await asyncio.open_connection(*self._address)
            except OSError:
                self.outcomes["refused"] += 1
                return
            try:
                while await self._ask(reader, writer):
                    pass
            finally:
                writer.close()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection may be used again."""
        try:
            writer.write(REQUEST)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError):
            self.outcomes["lost"] += 1
            return False
        self.outcomes[head.split()[1].decode()] += 1
        ended = b"connection: close" in head
        self.outcomes["close"] += ended
        return not (ended or self._stopped)


@pytest.mark.container
def test_drain_loses_no_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SIGTERM under load: readiness first, then no new connections, and each of ≥ 10,000 requests is answered."""
    with serving(tmp_path, {**TWO, "TRUEODDS_DRAIN_S": "1"}) as server, Crowd(server, 32) as crowd:
        seconds_until(lambda: crowd.outcomes["200"] >= 10_000, 60)
        server.terminate()
        ended = time.monotonic()
        time.sleep(0.4)
        assert httpx.get(f"{server.url}/readyz").status_code == 503
        assert ask(server) == 200
        assert server.process.wait(30) == 0
        took = time.monotonic() - ended
    report(capsys, f"drained in {took:.1f} s: {dict(crowd.outcomes)}")
    assert crowd.outcomes["lost"] == 0
    assert crowd.outcomes["200"] >= 10_000
    # Each learns by its last answer that the connection ends, and finds nobody to connect to.
    assert crowd.outcomes["close"] >= crowd.outcomes["refused"] == 32


def test_drain_ends_whatever_clients_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bodies and heads that never end, answers that are never read, silence: the service ends within 30 s."""
    with serving(tmp_path, TWO) as server, ExitStack() as stack:
        for piece in (REQUEST[:-10], REQUEST[:30], b"", REQUEST):
            for _ in range(4):
                client = stack.enter_context(socket.create_connection(address(server)))
                client.sendall(piece)
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            client.connect(address(server))
            client.setblocking(False)
            pipelined = b"GET /docs.json HTTP/1.1\r\nHost: a\r\n\r\n" * 1000
            with_room = client.send(pipelined)
            assert with_room
        time.sleep(1)
        server.terminate()
        started = time.monotonic()
        assert server.process.wait(30) == 0
        report(capsys, f"ended in {time.monotonic() - started:.1f} s")


@pytest.mark.container
def test_killed_worker_costs_what_it_had_in_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Kill -9 under load: no more is lost than the connections of that worker, and in 5 s there are two again."""
    with serving(tmp_path, TWO) as server:
        victim = settled(server, 2)[0]
        with Crowd(server, 16) as crowd:
            time.sleep(1)
            held = connections(victim)
            os.kill(victim, signal.SIGKILL)
            seconds_until(lambda: not alive(victim), 1)
            took = seconds_until(lambda: beating(server) == 2, 5)
        report(capsys, f"both serve after {took:.2f} s: {dict(crowd.outcomes)}, {held} connections of the victim")
        # Workers take from one queue of connections whoever comes first: a share is anything between none and all.
        assert 0 < crowd.outcomes["lost"] <= held
        assert crowd.outcomes["200"] > 1000
        assert len(children(server.pid)) == 2


@pytest.mark.parametrize(
    "signals",
    [
        pytest.param((signal.SIGSTOP,), id="stuck", marks=pytest.mark.container),
        pytest.param((signal.SIGSTOP, signal.SIGTERM), id="ending"),
    ],
)
def test_stuck_worker_is_replaced(tmp_path: Path, signals: tuple[int, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """One whose event loop stands still: within 10 s there is another, also where it was told to end."""
    with serving(tmp_path, TWO) as server:
        victim, other = settled(server, 2)
        for number in signals:
            os.kill(victim, number)
        took = seconds_until(lambda: not alive(victim), 10)
        took += seconds_until(lambda: beating(server) == 2, 10 - took)
        report(capsys, f"replaced after {took:.1f} s")
        assert alive(other)
        assert all(ask(server) == 200 for _ in range(20))
        assert "stands still: killed" in server.log.read_text()


# What a process does on top of the service: see `altered`.
NEVER_ENDS = """
import sys, time
if "service.launch" in sys.orig_argv:
    import service.batching, service.classifier
    def stuck(*args, **kwargs):
        time.sleep(1000)
    flag = __import__("pathlib").Path(__file__).with_name("flag")
    def replace(owner, name):
        usual = getattr(owner, name)
        setattr(owner, name, lambda *args, **kwargs: (stuck if flag.exists() else usual)(*args, **kwargs))
    replace({owner}, "{name}")
"""
SLOW_TO_START = """
import sys, time
if "service.launch" in sys.orig_argv:
    import service.registry
    usual = service.registry.load
    flag = __import__("pathlib").Path(__file__).with_name("flag")
    def load(*args, **kwargs):
        # Of a process that was stopped, each pause takes up where it was but for the one it was in.
        for _ in range(int(flag.read_text()) if flag.exists() else 0):
            time.sleep(0.1)
        return usual(*args, **kwargs)
    service.registry.load = load
"""
CLOCK_JUMPS = """
import random, time
usual = time.time
time.time = lambda: usual() + random.choice((-1, 0, 1)) * 30 * 86400
"""


def altered(folder: Path, code: str) -> dict[str, str]:
    """Settings by which every process of the service runs this code first."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": f"{folder}:{ROOT}"}


@pytest.mark.parametrize(
    ("owner", "name"),
    [("service.classifier", "_pixels_of"), ("service.batching.Batcher", "run")],
    ids=["decode", "infer"],
)
def test_stuck_thread_is_replaced(tmp_path: Path, owner: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A decode or an inference that never returns, beside an event loop that turns: within 10 s there is another."""
    settings = altered(tmp_path / "altered", NEVER_ENDS.format(owner=owner, name=name))
    large = BytesIO()
    Image.effect_noise((400, 400), 50).save(large, "PNG")
    with serving(tmp_path / "home", {"TRUEODDS_WORKERS": "1", "TRUEODDS_THREADS": "2", **settings}) as server:
        (victim,) = settled(server, 1)
        assert server.post("digits", large.getvalue()).status_code == 200
        flag = tmp_path / "altered" / "flag"
        flag.touch()
        with socket.create_connection(address(server)) as client:
            client.sendall((HEAD % len(large.getvalue())).encode() + large.getvalue())
            started = time.monotonic()
            time.sleep(1)
            flag.unlink()
            seconds_until(lambda: not alive(victim), 10)
        seconds_until(lambda: ask(server, 1) == 200, 5)
        took = time.monotonic() - started
        report(capsys, f"answers again after {took:.1f} s")
        assert took <= 10
        assert "does not come to an end" in server.log.read_text()


def test_worker_that_hangs_at_start_is_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """While it loads its models, before its first beat; the other answers meanwhile."""
    settings = {**TWO, "TRUEODDS_START_S": "4", **altered(tmp_path / "altered", SLOW_TO_START)}
    with serving(tmp_path / "home", settings) as server:
        workers = settled(server, 2)
        flag = tmp_path / "altered" / "flag"
        flag.write_text("10000")
        os.kill(workers[0], signal.SIGKILL)
        seconds_until(lambda: len(set(children(server.process.pid)) - set(workers)) == 1, 5)
        (hanging,) = set(children(server.process.pid)) - set(workers)
        time.sleep(2)
        flag.unlink()
        assert ask(server) == 200
        took = 2 + seconds_until(lambda: not alive(hanging), 5)
        assert settled(server, 2)[0] == workers[1]
        report(capsys, f"killed {took:.1f} s after it was started")
        assert "does not start: killed" in server.log.read_text()


def test_suspended_machine_costs_no_worker_that_starts(tmp_path: Path) -> None:
    """All processes stopped for longer than a start may take: the worker that was starting goes on to."""
    settings = {**TWO, "TRUEODDS_START_S": "10", **altered(tmp_path / "altered", SLOW_TO_START)}
    with serving(tmp_path / "home", settings) as server:
        workers = settled(server, 2)
        (tmp_path / "altered" / "flag").write_text("30")
        os.kill(workers[0], signal.SIGKILL)
        seconds_until(lambda: len(set(children(server.process.pid)) - set(workers)) == 1, 5)
        (starting,) = set(children(server.process.pid)) - set(workers)
        time.sleep(1)
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for pid in (server.process.pid, workers[1], starting):
                os.kill(pid, number)
            time.sleep(13 if number == signal.SIGSTOP else 0)
        assert settled(server, 2) == [workers[1], starting]


@pytest.mark.parametrize("what", ["keys", "bundle"])
def test_hangup_while_something_is_broken_keeps_the_old_workers(
    tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One new worker is tried and told of; then it is mended and all are replaced. No request is lost."""
    keys, bundles = tmp_path / "keys.json", tmp_path / "bundles"
    keys.write_text('{"keys": {}}')
    keys.chmod(0o600)
    shutil.copytree(BUNDLES, bundles)
    settings = {**TWO, "TRUEODDS_BUNDLES": str(bundles)}
    settings |= {"TRUEODDS_API_KEYS": str(keys)} if what == "keys" else {}
    file = keys if what == "keys" else bundles / "digits" / committed("digits").name / "manifest.json"
    with serving(tmp_path / "home", settings) as server:
        before = settled(server, 2)
        with Crowd(server, 8) as crowd:
            good = file.read_bytes()
            file.write_bytes(good[:-9])
            server.process.send_signal(signal.SIGHUP)
            told = seconds_until(lambda: "the old workers go on" in server.log.read_text(), 10)
            time.sleep(2)
            assert settled(server, 2) == before
            file.write_bytes(good)
            server.process.send_signal(signal.SIGHUP)
            took = seconds_until(lambda: not set(children(server.process.pid)) & set(before), 30)
            settled(server, 2)
        report(capsys, f"told after {told:.1f} s, replaced {took:.1f} s after it was mended: {dict(crowd.outcomes)}")
        # Those that show no key are answered too.
        answered = crowd.outcomes["401" if what == "keys" else "200"]
        assert answered > 1000
        assert crowd.outcomes.keys() <= {"200", "401", "close"}
        assert answered == crowd.outcomes["200"] + crowd.outcomes["401"]
        assert server.log.read_text().count("the old workers go on") == 1
        assert "another takes its place" not in server.log.read_text()


def test_clock_that_jumps_changes_nothing(tmp_path: Path) -> None:
    """The wall clock is off by 30 days at every other look: no worker is lost, no request, no connection."""
    with serving(tmp_path / "home", {**TWO, **altered(tmp_path / "altered", CLOCK_JUMPS)}) as server:
        before = settled(server, 2)
        with Crowd(server, 4) as crowd:
            time.sleep(8)
        assert crowd.outcomes["200"] > 1000
        assert crowd.outcomes.keys() <= {"200", "close"}
        assert crowd.outcomes["close"] == 0
        assert children(server.pid) == before


def test_worker_that_dies_at_start_is_tried_ever_more_rarely(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others answer meanwhile, the supervisor does not spin, and it comes back when what was wrong is mended."""
    code = 'import sys, pathlib\nif pathlib.Path(__file__).with_name("flag").exists(): sys.exit("broken on purpose")'
    with serving(tmp_path / "home", {**TWO, **altered(tmp_path / "altered", code)}) as server:
        workers = settled(server, 2)
        (tmp_path / "altered" / "flag").touch()
        os.kill(workers[0], signal.SIGKILL)
        time.sleep(8)
        assert ask(server) == 200
        starts = server.log.read_text().count("another takes its place")
        (tmp_path / "altered" / "flag").unlink()
        took = seconds_until(lambda: beating(server) == 2, 6)
        report(capsys, f"{starts} starts in 8 s, {cpu_s(server.pid):.2f} s of CPU, back after {took:.1f} s")
        assert starts <= 5


def test_readiness_tells_that_no_worker_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With all workers gone and successors that end at once, 503 rather than silence; then all is well again."""
    code = 'import sys, pathlib\nif pathlib.Path(__file__).with_name("flag").exists(): sys.exit("broken on purpose")'
    operators = free_port()
    settings = {**TWO, "TRUEODDS_ADMIN_PORT": str(operators), **altered(tmp_path / "altered", code)}
    with serving(tmp_path / "home", settings) as server:
        workers = settled(server, 2)
        (tmp_path / "altered" / "flag").touch()
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        told = seconds_until(lambda: ready(server) == 503, 5)
        answer = httpx.get(f"http://127.0.0.1:{operators}/readyz", timeout=2)
        assert answer.status_code == answer.json()["status"] == 503
        assert len(answer.json()["request_id"]) == len(answer.headers["x-request-id"]) == 32
        (tmp_path / "altered" / "flag").unlink()
        took = seconds_until(lambda: ready(server) == 200, 5)
        report(capsys, f"503 after {told:.1f} s, 200 again after {took:.1f} s")


def ready(server: Server) -> int:
    try:
        return httpx.get(f"{server.url}/readyz", timeout=2).status_code
    except httpx.TransportError:
        return 0


def test_suspended_machine_costs_no_worker(tmp_path: Path) -> None:
    """All processes stopped for 12 s, as when a container is frozen: every worker stays."""
    with serving(tmp_path, TWO) as server:
        before = settled(server, 2)
        everyone = [server.pid, *before]
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for pid in everyone:
                os.kill(pid, number)
            time.sleep(12 if number == signal.SIGSTOP else 3)
        assert children(server.pid) == before
        assert ask(server) == 200


def test_orphaned_workers_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The supervisor is killed: what was begun is answered, the workers end, the port and the disk are free."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with serving(tmp_path / "home", {**TWO, "TMPDIR": str(temporary)}) as server:
        workers = settled(server, 2)
        assert list(temporary.glob("trueodds-workers-*/*"))
        with socket.create_connection(address(server), timeout=10) as client:
            client.sendall(REQUEST[:-10])
            time.sleep(0.3)
            server.process.kill()
            time.sleep(0.5)
            client.sendall(REQUEST[-10:])
            assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
        took = seconds_until(lambda: not any(map(alive, workers)), 10)
        report(capsys, f"workers ended after {took:.1f} s")
        assert not list(temporary.glob("trueodds-*"))
        with socket.create_server(address(server)):
            pass


def limited(home: Path, settings: dict[str, str], limit: str, log: int) -> tuple[subprocess.Popen[bytes], int]:
    """The service under a shell's limit."""
    port = free_port()
    home.mkdir(parents=True, exist_ok=True)
    command = f"{limit}; exec {sys.executable} -m service --port {port}"
    process = subprocess.Popen(
        ["sh", "-c", command], cwd=ROOT, env=environment(home, settings), start_new_session=True, stdout=log, stderr=log
    )
    return process, port


def test_log_that_nobody_reads_holds_nothing_up(tmp_path: Path) -> None:
    """A pipe for the log, never read: answers go on, a worker is replaced, and SIGTERM ends it all."""
    reading, writing = os.pipe()
    settings = {**TWO, "TRUEODDS_ACCESS_LOG_SAMPLE": "1"}
    process, port = limited(tmp_path, settings, "true", writing)
    os.close(writing)
    server = Server(f"http://127.0.0.1:{port}", process, Path(os.devnull))
    try:
        wait_until_ready(server.url, process, server.log)
        workers = settled(server, 2)
        with Crowd(server, 8) as crowd:
            seconds_until(lambda: crowd.outcomes["200"] >= 4000, 30)
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        seconds_until(lambda: len(set(children(process.pid)) - set(workers)) == 2, 5)
        assert ask(server) == 200
        process.terminate()
        assert process.wait(30) == 0
    finally:
        stop(process)
        os.close(reading)


def test_log_on_a_full_disk_holds_nothing_up(tmp_path: Path) -> None:
    """Every line fails with ENOSPC."""
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        process, port = limited(tmp_path, {**TWO, "TRUEODDS_ACCESS_LOG_SAMPLE": "1"}, "true", full.fileno())
    server = Server(f"http://127.0.0.1:{port}", process, Path(os.devnull))
    try:
        wait_until_ready(server.url, process, server.log)
        os.kill(settled(server, 2)[0], signal.SIGKILL)
        assert [ask(server) for _ in range(100)] == [200] * 100
        settled(server, 2)
        process.terminate()
        assert process.wait(30) == 0
    finally:
        stop(process)


def test_no_descriptor_left_is_waited_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """2,000 connections to workers of 100 descriptors: those they have go on, no busy loop, then all is well."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(8192, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),) * 2)
    process, port = limited(tmp_path, TWO, "ulimit -n 100", subprocess.DEVNULL)
    server = Server(f"http://127.0.0.1:{port}", process, Path(os.devnull))
    try:
        wait_until_ready(server.url, process, server.log)
        workers = settled(server, 2)
        with socket.create_connection(address(server), timeout=10) as kept:
            kept.sendall(REQUEST)
            assert kept.recv(65536).startswith(b"HTTP/1.1 200 ")
            with ExitStack() as stack:
                for _ in range(2000):
                    stack.enter_context(socket.create_connection(address(server), timeout=10))
                time.sleep(1)
                before = sum(map(cpu_s, workers))
                for _ in range(30):
                    kept.sendall(REQUEST)
                    assert kept.recv(65536).startswith(b"HTTP/1.1 200 ")
                    time.sleep(0.1)
                busy = (sum(map(cpu_s, workers)) - before) / 3
            took = seconds_until(lambda: ask(server, 5) == 200, 5)
        report(capsys, f"{busy:.0%} of a core while exhausted, answers again after {took:.2f} s")
        assert busy < 0.3
        assert children(process.pid) == workers
    finally:
        stop(process)


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], check=False).returncode:
        pytest.skip("this user may not mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_temporary_files_on_a_full_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is served goes on; a worker that dies comes back as soon as there is room, without spinning before."""
    with (
        small_disk(tmp_path / "disk", "2m") as disk,
        serving(tmp_path / "home", {**TWO, "TMPDIR": str(disk)}) as server,
    ):
        outlast(server, disk, capsys)


def outlast(server: Server, disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The disk on which the service has its temporary files is filled, and emptied again."""
    workers, started = settled(server, 2), server.log.read_text().count("another takes its place")
    with (disk / "filling").open("wb", buffering=0) as filling, suppress(OSError):
        while filling.write(bytes(4096)):
            pass
    for query in ("", "?top_k=all", "?top_k=0"):
        for model in ("digits", "cifar10", "none"):
            assert server.post(model, IMAGE, query=query).status_code in (200, 404, 422)
    assert httpx.get(f"{server.url}/metrics").status_code in (200, 503, 507)
    assert children(server.pid) == workers
    os.kill(workers[0], signal.SIGKILL)
    time.sleep(6)
    assert ask(server) == 200
    (disk / "filling").unlink()
    taken = seconds_until(lambda: beating(server) == 2, 5)
    assert httpx.get(f"{server.url}/metrics").status_code == 200
    starts = server.log.read_text().count("another takes its place") - started
    report(capsys, f"well after {taken:.2f} s, {starts} starts while there was no room")
    assert starts <= 5
    settled(server, 2)
