"""A PostgreSQL server of a test's own, on a port of this machine, where PostgreSQL is installed."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

USER, PASSWORD = "trueodds", "s3cret-of-a-test"
STARTS_S = 30


def program(name: str) -> str | None:
    """Where Debian puts it, it is on nobody's PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(found[-1]) if found else None)


class Database:
    """Runs from `start` until `stop`, as an unprivileged user, for it refuses to run as root."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        self._user = _unprivileged()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{self.port}/postgres"

    def make(self) -> None:
        password = self.folder / "password"
        password.write_text(PASSWORD)
        if self._user:
            for path in (self.folder, password):
                shutil.chown(path, self._user)
        options = ["--username", USER, "--pwfile", str(password), "--auth", "scram-sha-256", "--encoding", "UTF8"]
        command = [program("initdb") or "", "--no-sync", "--pgdata", str(self.folder / "data"), *options]
        made = subprocess.run(command, user=self._user, capture_output=True, text=True, check=False)
        assert made.returncode == 0, made.stderr

    def start(self) -> None:
        settings = {"listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": "", "fsync": "off"}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        command = [program("postgres") or "", "-D", str(self.folder / "data"), *options]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, user=self._user, stdout=log, stderr=log, cwd="/")
        until = time.monotonic() + STARTS_S
        while subprocess.run(
            [program("pg_isready") or "", "-h", "127.0.0.1", "-p", str(self.port)], capture_output=True, check=False
        ).returncode:
            assert time.monotonic() < until, (self.folder / "log").read_text()
            time.sleep(0.05)

    def run(self, statement: str, name: str = "postgres") -> None:
        """By a client of PostgreSQL's own."""
        command = [program("psql") or "", self.url.removesuffix("postgres") + name, "--quiet", "--command", statement]
        subprocess.run(command, check=True)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """At once, whoever is connected."""
        if self._process:
            self._process.send_signal(how)
            self._process.wait(STARTS_S)
            self._process = None


@contextmanager
def database() -> Iterator[Database]:
    """Started; the test is skipped where PostgreSQL is not installed."""
    if not all(map(program, ("initdb", "postgres", "pg_isready", "psql"))):
        pytest.skip("PostgreSQL is not installed")
    # pytest's own folders are closed to the user that the server runs as.
    folder = Path(tempfile.mkdtemp(prefix="trueodds-postgres-"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found = Database(folder, probe.getsockname()[1])
    try:
        found.make()
        found.start()
        yield found
    finally:
        # Nothing of it is needed any more.
        found.stop(signal.SIGQUIT)
        shutil.rmtree(folder, ignore_errors=True)


def _unprivileged() -> str | None:
    if os.geteuid():
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"
