"""Start the service: `python -m service [--host HOST] [--port PORT]`.

What would keep it from starting is found first and told in one line.
"""

import argparse
import os
import socket
import sys
from pathlib import Path

from service import bundle, registry
from service.errors import StartupError
from service.settings import Settings

PROJECT = Path(__file__).parent.parent


def main(argv: list[str] | None = None) -> int:
    """Returns 1 where the service cannot start; otherwise the service takes the place of this process."""
    parser = argparse.ArgumentParser(prog="python -m service", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine)")
    parser.add_argument("--port", type=int, default=3000, help="port to listen on (default: %(default)s)")
    arguments = parser.parse_args(argv)
    try:
        check(Settings.from_environment(), arguments.host, arguments.port)
    except StartupError as error:
        print(f"trueodds: {error}", file=sys.stderr)
        return 1
    # In place of this process, which so leaves nothing in memory.
    command = ["bentoml", "serve", str(PROJECT), "--host", arguments.host, "--port", str(arguments.port)]
    os.execv(sys.executable, [sys.executable, "-m", *command])  # noqa: S606  no shell is wanted


def check(settings: Settings, host: str, port: int) -> None:
    """Raise StartupError for whatever would keep the workers from starting."""
    bundles = bundle.discover(settings.bundles, settings.models)
    if (settings.backend, settings.device) != ("onnx", "auto"):
        # The default runs anywhere; another choice may not be there.
        found = next(iter(bundles.values()))
        registry.BACKENDS[settings.backend](found.directory, settings.device, 1)
    _check_free(host, port)
    if not settings.compiled.is_dir():
        # The first start on this machine. In this process, which ends, so that no worker keeps the memory it takes.
        registry.prepare(settings, settings.compiled)


def _check_free(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        # As the server will: a port in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise StartupError(
                f"cannot listen on {host}:{port} ({error}); choose another with --host, --port."
            ) from error


if __name__ == "__main__":
    sys.exit(main())
