"""Ask a served image and a served bento the same; standard library only.

    compare.py ready URL SECONDS      wait until a service is ready
    compare.py answers URL OTHER_URL  classify one fixture image for each model through both, and compare

Exits 1 with one line on what is wrong.
"""

import http.client
import json
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

FIXTURES = Path(__file__).parent.parent / "tests" / "fixtures"
TOLERANCE = 1e-5


class Unequal(Exception):
    """The image does not do what the bento does."""


def request(url: str, path: str, body: bytes | None = None) -> Any:
    """The JSON answered with status 200. Raises Unequal for another status, OSError without an answer."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    try:
        connection.request("POST" if body else "GET", path, body, {"content-type": "image/png"} if body else {})
        response = connection.getresponse()
        content = response.read()
    finally:
        connection.close()
    if response.status != 200:
        raise Unequal(f"{url}{path} answered {response.status}: {content.decode(errors='replace')}")
    return json.loads(content)


def wait_until_ready(url: str, seconds: float) -> None:
    """Raises Unequal when `url` is not ready in time."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            request(url, "/readyz")
        except (OSError, http.client.HTTPException, Unequal) as error:
            if time.monotonic() > deadline:
                raise Unequal(f"{url} is not ready after {seconds:g} s: {error}") from error
            time.sleep(0.05)
        else:
            return


def compare(url: str, other_url: str) -> None:
    """Raises Unequal at the first model that is missing or answers otherwise."""
    models = _models(url)
    if models != _models(other_url):
        raise Unequal(f"{url} serves {models}, {other_url} serves {_models(other_url)}")
    for name, n_labels in models.items():
        image = min((FIXTURES / name).glob("*.png"))
        path = f"/v1/models/{name}/classify?top_k={n_labels}"
        answers = [request(each, path, image.read_bytes())["predictions"] for each in (url, other_url)]
        probabilities, other = ({p["label"]: p["probability"] for p in predictions} for predictions in answers)
        difference = max(abs(probabilities[label] - other[label]) for label in other)
        if difference > TOLERANCE:
            raise Unequal(f"{name}: {image.name} differs by {difference:g}: {probabilities} and {other}")
        label, truth = answers[0][0]["label"], image.stem.partition("-")[2]
        verdict = "as named" if label == truth else f"named {truth}: the network's error, the bento's too"
        certainty = f"p = {probabilities[label]:.4f}, differs by {difference:.1g}"
        print(f"{name}: {image.name} is {label} ({verdict}), {certainty}")


def _models(url: str) -> dict[str, int]:
    return {model["name"]: len(model["labels"]) for model in request(url, "/v1/models")["models"]}


def main() -> int:
    try:
        match sys.argv[1:]:
            case ["ready", url, seconds]:
                wait_until_ready(url, float(seconds))
            case ["answers", url, other_url]:
                compare(url, other_url)
            case _:
                print(__doc__, file=sys.stderr)
                return 2
    except (Unequal, OSError, http.client.HTTPException) as error:
        print(f"compare.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
