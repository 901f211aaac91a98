"""What service.supervisor starts: `python -m service.launch --socket FD --number N`, a worker that needs no BentoML.

Importing BentoML takes 45 MB and most of a second, and a worker does without until a client of BentoML's comes. The
first worker also finds what would keep the service from starting, prepares what all need, and tells how many there
shall be.
"""

import argparse
import ctypes
import logging
import os
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import uvicorn

from service import allocator, bundle, feedback, gate, registry
from service.errors import StartupError
from service.health import ADDRESS, url_of
from service.lines import Lines, LinesHandler
from service.protocol import Application
from service.seal import check_vouched
from service.settings import Settings
from service.worker import Worker

# How long a worker that has lost its supervisor takes to end, at most.
ORPHAN_S = 28.0
# Of prctl: the signal a process gets when its parent ends (linux/prctl.h).
PR_SET_PDEATHSIG = 1
LOG_FORMAT = "%(asctime)s [%(levelname)s] [worker:{number}] %(message)s"


def serve(settings: Settings, listening: list[socket.socket], number: int) -> bool:
    """Answer what comes in by `listening` until a signal ends it; False where it cannot, which the log explains.

    The second socket, if any, is for operators.
    """
    worker = Worker(settings, shared_folder(), number, two_ports=len(listening) == 2)
    config = uvicorn.Config(worker.before(lambda: _bentoml(number)), log_config=None, server_header=False)
    server = worker.server(config)
    # Must not stop in mid-air what SIGTERM would end: see service.supervisor.
    signal.signal(signal.SIGUSR1, server.retire)
    server.run(sockets=listening)
    return server.started


def shared_folder() -> Path | None:
    """What the workers of this instance share."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    return Path(folder) if folder else None


def _bentoml(number: int) -> Application:
    from service.api import TrueOdds

    return TrueOdds.behind(number)


def end_with(supervisor: int) -> None:
    """End as at SIGTERM when the supervisor does, whose end of the pipe `supervisor` then closes."""

    def wait() -> None:
        os.read(supervisor, 1)
        if folder := shared_folder():
            # Nobody else will. What is mapped of it stays, for those that still answer.
            shutil.rmtree(folder, ignore_errors=True)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(ORPHAN_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, name="orphan", daemon=True).start()


def check(settings: Settings) -> None:
    """Raise StartupError for whatever would keep the workers from starting, and prepare what they need."""
    gate.check(settings)
    feedback.check(settings)
    if settings.tls:
        settings.tls.context()
    bundles = bundle.discover(settings.bundles, settings.models, settings.trust, settings.variant)
    if settings.backend == "torchscript":
        check_vouched(found.seal for found in bundles.values())
    first = _first(settings)
    registry.check(bundles, settings, settings.compiled)
    if first:
        # Optimising took 20 MB for a moment.
        allocator.give_back()
        # Nobody else works yet.
        registry.prepare(bundles, settings, settings.compiled)


def takes_memory(settings: Settings) -> bool:
    """Whether `check` takes memory that only the end of its process gives back."""
    return _first(settings) or (settings.backend, settings.device) != ("onnx", "auto")


def _first(settings: Settings) -> bool:
    """Whether it is the first start on this machine."""
    return not settings.compiled.is_dir()


def apart(check: Callable[[], None]) -> bool:
    """Whether `check` finds nothing wrong, in a process of its own that ends with this one.

    Forked, for importing all this again takes half a second. There is no other thread yet.
    """
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            # Where there is such a thing.
            if prctl := getattr(ctypes.CDLL(None), "prctl", None):
                prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() == parent:
                check()
                status = 0
        except StartupError as error:
            print(f"trueodds: {error}", file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        finally:
            logging.shutdown()
            sys.stderr.flush()
            os._exit(status)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        # It could not say why; the supervisor tells of the signal.
        with suppress(OSError):
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    return status == 0


def main(argv: list[str] | None = None) -> int:
    """Returns 1 where the service cannot start, having said why in one line."""
    parser = argparse.ArgumentParser(prog="python -m service.launch", description=__doc__)
    parser.add_argument("--socket", type=int, required=True, nargs="+", help="descriptors of the listening sockets")
    parser.add_argument("--number", type=int, required=True, help="counted from 1 among the workers of an instance")
    parser.add_argument("--life", type=int, help="descriptor of a pipe that ends with the supervisor")
    parser.add_argument("--tell", type=int, help="descriptor to write the number of workers to, once they may start")
    arguments = parser.parse_args(argv)
    try:
        settings = Settings.from_environment()
        first = arguments.tell is not None
        checks_apart = first and takes_memory(settings)
        if checks_apart and not apart(partial(_checked, settings, arguments.number)):
            return 1
        _log(arguments.number)
        if arguments.life is not None:
            end_with(arguments.life)
        if first and not checks_apart:
            check(settings)
        listening = [socket.socket(fileno=descriptor) for descriptor in arguments.socket]
        if first:
            tell(arguments.tell, settings, listening)
        return int(not serve(settings, listening, arguments.number))
    except StartupError as error:
        print(f"trueodds: {error}", file=sys.stderr)
        return 1


def _log(number: int) -> None:
    logging.basicConfig(
        level=logging.WARNING,
        handlers=[LinesHandler(Lines(sys.stdout, "log"))],
        format=LOG_FORMAT.format(number=number),
        datefmt="%Y-%m-%dT%H:%M:%S%z",
    )


def _checked(settings: Settings, number: int) -> None:
    _log(number)
    check(settings)


def tell(supervisor: int, settings: Settings, listening: list[socket.socket]) -> None:
    """What the supervisor waits for, by its pipe, and where the service is, for who looks whether it is well.

    Raises StartupError.
    """
    urls = [url_of(each, tls=bool(settings.tls)) for each in listening]
    if folder := shared_folder():
        try:
            (folder / ADDRESS).write_text(urls[0] + (" mutual" if settings.tls_client_ca else ""))
        except OSError as error:
            raise StartupError(f"there is no room for temporary files ({error}); set TMPDIR.") from error
    address = ", for operators ".join(urls)
    os.write(supervisor, f"{settings.worker_count} {settings.drain_s:g} {settings.start_s} {address}\n".encode())
    os.close(supervisor)


if __name__ == "__main__":
    sys.exit(main())
