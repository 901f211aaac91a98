"""The HTTP floor: the service's own HTTP server with nothing behind it. `python -m loadtest.floor WORKERS BOARD`.

So many processes accept from one socket, as the service's workers do, and share the file BOARD. Each body is read and
answered by a fixed JSON of as many bytes as the path says: POST /900. Says its port when it listens.
"""

import multiprocessing
import socket
import sys
from pathlib import Path

import uvicorn

from service.board import Board
from service.protocol import Deadlines, Receive, Scope, Send
from service.server import Server

BACKLOG = 2048


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """A bare ASGI application."""
    while (await receive()).get("more_body"):
        pass
    length = scope["path"][1:]
    headers = [(b"content-type", b"application/json"), (b"content-length", length.encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b'"%b"' % (b"x" * (int(length) - 2))})


def serve(listening: socket.socket, board: Board) -> None:
    config = uvicorn.Config(application, loop="uvloop", lifespan="off", access_log=False, log_level="warning")
    Server(config, Deadlines(), board).run(sockets=[listening])


def main() -> None:
    workers, board = int(sys.argv[1]), Path(sys.argv[2])
    forking = multiprocessing.get_context("fork")
    with socket.create_server(("127.0.0.1", 0), backlog=BACKLOG) as listening:
        # All are on the board before the first of them accepts.
        boards = [Board(board, row) for row in range(workers)]
        serving = [forking.Process(target=serve, args=(listening, each), daemon=True) for each in boards]
        for process in serving:
            process.start()
        print(listening.getsockname()[1], flush=True)
        for process in serving:
            process.join()


if __name__ == "__main__":
    main()
