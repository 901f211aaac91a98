"""`python -m loadtest --host http://localhost:3000`: a run without the web page, from load to report.

Exits 0 when every answer was right, 1 when one was not, 2 when the run could not begin.
"""

# locust comes first: it patches the sockets for gevent, and what is imported before keeps the blocking ones.
from locust import events  # isort: skip
import argparse
import signal
import sys
from pathlib import Path

import gevent  # type: ignore[import-untyped]
import gevent.event  # type: ignore[import-untyped]
import httpx
from locust.env import Environment
from locust.stats import stats_history

from loadtest.answers import ModelList, ServedModel, WrongAnswer, parse
from loadtest.images import FIXTURES, read_images
from loadtest.locustfile import MODELS, Client
from loadtest.report import failures, summary, write_html

REPORT = Path(".cache/loadtest/report.html")
FIRST_ANSWER_TIMEOUT_S = 10.0
# How long answers still under way at the end are waited for.
LAST_ANSWERS_TIMEOUT_S = 5.0
# Users started each second; beyond this locust advises against it.
SPAWN_RATE = 100


class NothingToLoad(Exception):
    """Why a run cannot begin; names the remedy."""


def main() -> int:
    options = _options()
    try:
        models = served_models(options.host)
        make_folder_for(options.report)
    except (NothingToLoad, OSError) as reason:
        print(f"loadtest: {reason}", file=sys.stderr)
        return 2
    names = " and ".join(model.name for model in models)
    print(f"{options.users} users post images for {names} to {options.host} for {options.seconds:g} s", flush=True)
    environment = run(options.host, options.users, options.seconds)
    print(summary(environment, Client.tally))
    write_html(environment, options.report)
    print(f"report {options.report}")
    return int(failed(environment))


def make_folder_for(report: Path) -> None:
    """Before the run rather than after it, for whoever mistypes a path. Raises NothingToLoad or OSError."""
    if report.is_dir():
        raise NothingToLoad(f"{report} is a folder; --report names a file")
    report.parent.mkdir(parents=True, exist_ok=True)


def served_models(host: str) -> list[ServedModel]:
    """The models served there of which there are test images. Raises NothingToLoad."""
    try:
        # No proxy: the users speak to the service directly too.
        response = httpx.get(host + MODELS, timeout=FIRST_ANSWER_TIMEOUT_S, trust_env=False)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise NothingToLoad(
            f"no server answers at {host} ({str(error) or type(error).__name__}); start one with: make serve"
        ) from error
    try:
        if response.status_code != 200:
            raise WrongAnswer(f"status {response.status_code}")
        served = parse(ModelList, response.content).models
    except WrongAnswer as reason:
        raise NothingToLoad(
            f"{host}{MODELS} does not list any models ({reason}); is it another server, or still starting?"
        ) from reason
    known = {image.model for image in read_images()}
    models = [model for model in served if model.name in known]
    if not models:
        raise NothingToLoad(f"no model served at {host} has test images in {FIXTURES}")
    return models


def run(host: str, users: int, seconds: float) -> Environment:
    """Let the users loose on the host. Ctrl-C and SIGTERM end the run early, in order."""
    environment = Environment(
        user_classes=[Client],
        events=events,
        host=host,
        locustfile="loadtest/locustfile.py",
        stop_timeout=LAST_ANSWERS_TIMEOUT_S,
    )
    runner = environment.create_local_runner()
    charts = gevent.spawn(stats_history, runner)
    over = gevent.event.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(number, over.set)
    runner.start(users, spawn_rate=min(users, SPAWN_RATE))
    over.wait(seconds)
    charts.kill()
    runner.quit()
    return environment


def failed(environment: Environment) -> bool:
    """Whether an answer was wrong, a user crashed, or nothing was answered at all."""
    return bool(failures(environment))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest", description="Post test images to a running service.")
    parser.add_argument("--host", type=_url, default="http://localhost:3000", help="default: %(default)s")
    parser.add_argument("--users", type=_positive, default=64, help="images under way at once; default: %(default)s")
    parser.add_argument("--seconds", type=_duration, default=30.0, help="default: %(default)g")
    parser.add_argument("--report", type=Path, default=REPORT, help="locust's HTML report; default: %(default)s")
    return parser.parse_args()


def _url(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"{text!r} does not begin with http:// or https://")
    return text.rstrip("/")


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def _duration(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
