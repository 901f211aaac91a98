"""Start the service: `python -m service [--host HOST] [--port PORT]`.

What would keep it from starting is found first and told in one line.
"""

import argparse
import os
import shutil
import socket
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import NoReturn

from service.board import BOARD, Pulses
from service.errors import StartupError
from service.supervisor import Supervisor, start_worker

PROJECT = Path(__file__).parent.parent
# Connections that may wait for a worker to accept them, as far as the system allows.
BACKLOG = 2048
# Settings, see service.settings.
ADMIN_HOST, ADMIN_PORT = "TRUEODDS_ADMIN_HOST", "TRUEODDS_ADMIN_PORT"
# What BentoML can be configured by beyond this service's settings.
BENTOML_CONFIGURATION = ("BENTOML_CONFIG", "BENTOML_CONFIG_OPTIONS")


def main(argv: list[str] | None = None) -> int:
    """Serve until a signal comes. Returns 1 where the service cannot start."""
    parser = argparse.ArgumentParser(prog="python -m service", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine)")
    parser.add_argument("--port", type=int, default=3000, help="port to listen on (default: %(default)s)")
    arguments = parser.parse_args(argv)
    try:
        with listen(arguments.host, arguments.port) as listening:
            if not any(os.environ.get(name) for name in BENTOML_CONFIGURATION):
                return supervise([listening, *for_operators()])
        _serve_by_bentoml(arguments.host, arguments.port)
    except StartupError as error:
        print(f"trueodds: {error}", file=sys.stderr)
        return 1


def for_operators() -> list[socket.socket]:
    """The socket of those who run the service, where they are to have one. Raises StartupError.

    Settings are read by workers, for their module would double this process. What makes no sense they refuse.
    """
    try:
        port = int(os.environ.get(ADMIN_PORT, "0"))
    except ValueError:
        return []
    host = os.environ.get(ADMIN_HOST, "127.0.0.1")
    return [listen(host, port, f"{ADMIN_HOST}, {ADMIN_PORT}")] if port else []


def listen(host: str, port: int, chosen_by: str = "--host, --port") -> socket.socket:
    """A socket that all workers accept from. Raises StartupError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family)
    # A port in TIME_WAIT is free.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        listening.close()
        raise StartupError(f"cannot listen on {host}:{port} ({error}); choose another with {chosen_by}.") from error
    return listening


def supervise(listening: list[socket.socket]) -> int:
    """Run workers that accept from `listening`, until a signal comes. Returns 1 where they cannot start."""
    for each in listening:
        each.set_inheritable(True)
    # What the workers of this instance share: see service.metrics and service.board.
    # Its end is that of this process, however that comes.
    life, _held = os.pipe()
    os.set_inheritable(life, True)
    try:
        folder = tempfile.mkdtemp(prefix="trueodds-workers-")
    except OSError as error:
        raise StartupError(f"there is no room for temporary files ({error}); set TMPDIR.") from error
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": folder}
    try:
        pulses = Pulses(Path(folder) / BOARD)
        descriptors = [each.fileno() for each in listening]
        start = partial(start_worker, listening=descriptors, life=life, environment=environment)
        return Supervisor(listening, start, pulses.of).run()
    except OSError as error:
        raise StartupError(f"the service cannot go on ({error}).") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _serve_by_bentoml(host: str, port: int) -> NoReturn:
    """BentoML's own launcher and workers in place of this process. Raises StartupError."""
    from service.launch import check
    from service.settings import Settings
    from service.worker import NO_ADMIN_PORT

    settings = Settings.from_environment()
    if settings.admin_port:
        raise StartupError(NO_ADMIN_PORT)
    check(settings)
    command = ["bentoml", "serve", str(PROJECT), "--host", host, "--port", str(port)]
    os.execv(sys.executable, [sys.executable, "-m", *command])  # noqa: S606  no shell is wanted  # nosec B606


if __name__ == "__main__":
    sys.exit(main())
