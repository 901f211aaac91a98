"""What service.supervisor starts: `python -m service.launch --socket FD --number N`, a worker that needs no BentoML.

Importing BentoML takes 45 MB and most of a second, and a worker does without until a client of BentoML's comes. The
first worker also finds what would keep the service from starting, prepares what all need, and tells how many there
shall be.
"""

import argparse
import logging
import os
import socket
import sys
from pathlib import Path

import uvicorn

from service import bundle, registry
from service.errors import StartupError
from service.protocol import Application
from service.seal import check_vouched
from service.settings import Settings
from service.worker import Worker

LOG_FORMAT = "%(asctime)s [%(levelname)s] [worker:{number}] %(message)s"


def serve(settings: Settings, listening: socket.socket, number: int) -> bool:
    """Answer what comes in by `listening` until a signal ends it; False where it cannot, which the log explains."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    worker = Worker(settings, Path(folder) if folder else None, number)
    config = uvicorn.Config(worker.before(lambda: _bentoml(number)), log_config=None, server_header=False)
    server = worker.server(config)
    server.run(sockets=[listening])
    return server.started


def _bentoml(number: int) -> Application:
    from service.api import TrueOdds

    return TrueOdds.behind(number)


def check(settings: Settings) -> bool:
    """Raise StartupError for whatever would keep the workers from starting, and prepare what they need.

    Returns whether that took memory which only a new process gives back.
    """
    bundles = bundle.discover(settings.bundles, settings.models, settings.trust)
    if settings.backend == "torchscript":
        check_vouched(found.seal for found in bundles.values())
    chosen = (settings.backend, settings.device) != ("onnx", "auto")
    if chosen:
        # The default runs anywhere; another choice may not be there.
        found = next(iter(bundles.values()))
        registry.BACKENDS[settings.backend](found.directory, settings.device, 1, seal=found.seal)
    first = not settings.compiled.is_dir()
    if first:
        # The first start on this machine, and nobody else works yet.
        registry.prepare(settings, settings.compiled)
    return chosen or first


def main(argv: list[str] | None = None) -> int:
    """Returns 1 where the service cannot start, having said why in one line."""
    parser = argparse.ArgumentParser(prog="python -m service.launch", description=__doc__)
    parser.add_argument("--socket", type=int, required=True, help="descriptor of the listening socket")
    parser.add_argument("--number", type=int, required=True, help="counted from 1 among the workers of an instance")
    parser.add_argument("--tell", type=int, help="descriptor to write the number of workers to, once they may start")
    arguments = parser.parse_args(argv)
    logging.basicConfig(
        level=logging.WARNING,
        stream=sys.stdout,
        format=LOG_FORMAT.format(number=arguments.number),
        datefmt="%Y-%m-%dT%H:%M:%S%z",
    )
    try:
        settings = Settings.from_environment()
        if arguments.tell is not None:
            heavy = check(settings)
            os.write(arguments.tell, b"%d\n" % settings.worker_count)
            os.close(arguments.tell)
            if heavy:
                _start_anew(arguments.socket, arguments.number)
        return int(not serve(settings, socket.socket(fileno=arguments.socket), arguments.number))
    except StartupError as error:
        print(f"trueodds: {error}", file=sys.stderr)
        return 1


def _start_anew(listening: int, number: int) -> None:
    worker = ["service.launch", "--socket", str(listening), "--number", str(number)]
    os.execv(sys.executable, [sys.executable, "-m", *worker])  # noqa: S606  no shell is wanted  # nosec B606


if __name__ == "__main__":
    sys.exit(main())
