"""Asks the service of this machine whether it is well: `python -m service.health`, status 0 if so, for containers.

Where it is it finds in the folder that the workers share, whatever the port. Certificates are not verified, for nothing
is told that others must not hear and they seldom name the loopback address.
"""

import argparse
import ssl
import sys
import tempfile
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from socket import socket
from urllib.parse import urlsplit

# In the folder that workers share: where the service is, and "mutual" where clients need a certificate.
ADDRESS, FOLDERS = "address", "trueodds-workers-*"
DEFAULT = "http://127.0.0.1:3000"
TIMEOUT_S = 4.0


class Unwell(Exception):
    """What is wrong."""


def url_of(listening: socket, *, tls: bool) -> str:
    """Of what listens by TCP."""
    host, port = listening.getsockname()[:2]
    return f"http{'s' * tls}://{f'[{host}]' if ':' in host else host}:{port}"


def found() -> str:
    """What the newest service of this user has written of where it is; the default for one of BentoML's launcher."""
    addresses = list(Path(tempfile.gettempdir()).glob(f"{FOLDERS}/{ADDRESS}"))
    # Of several, the others were killed with all they had, or are not of a container.
    return max(addresses, key=lambda path: path.stat().st_mtime).read_text() if addresses else DEFAULT


def ask(address: str) -> None:
    """`address` is as in ADDRESS. Raises Unwell, or OSError and HTTPException where there is no answer."""
    url, _, mutual = address.partition(" ")
    parts = urlsplit(url)
    # Where it listens to all addresses, Linux takes that for this machine's own.
    host = parts.hostname or ""
    if parts.scheme == "http":
        return _ready(HTTPConnection(host, parts.port, timeout=TIMEOUT_S))
    connection = HTTPSConnection(host, parts.port, timeout=TIMEOUT_S, context=_unverifying())
    connection.connect()
    if not mutual:
        return _ready(connection)
    # This has no certificate, so no answer comes. But the handshake is a worker's, which has loaded all models before
    # it accepts anybody.
    connection.close()
    return None


def _ready(connection: HTTPConnection) -> None:
    connection.request("GET", "/readyz")
    status = connection.getresponse().status
    connection.close()
    if status != 200:
        raise Unwell(f"/readyz answers {status}")


def _unverifying() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    # Of which a client's handshake is complete when the service has shown that it has its key.
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m service.health", description=__doc__)
    parser.add_argument("url", nargs="?", help=f"where the service is (default: as it has written, or {DEFAULT})")
    try:
        ask(parser.parse_args(argv).url or found())
    except (Unwell, OSError, HTTPException) as error:
        with suppress(OSError):
            print(f"unwell: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
