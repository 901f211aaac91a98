"""service.descriptions: GET /v1/models/{name}/calibration tells what calibration.json does, over a real socket."""

import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest

from service import bundle
from service.settings import BUNDLES
from tests.conftest import Server, serving

pytestmark = pytest.mark.slow

MODELS = sorted(path.name for path in BUNDLES.iterdir())
# Of the files, and of what made sure of them; nothing that speaks of the answers.
UNTOLD = {"schema_version", "model_sha256", "labels", "input", "test_vectors"}


def url(server: Server, model: str) -> str:
    return f"{server.url}/v1/models/{model}/calibration"


def document(model: str) -> dict[str, Any]:
    directory = bundle.discover(BUNDLES, (model,))[model].directory
    found: dict[str, Any] = json.loads((directory / bundle.CALIBRATION).read_text())
    return found


@pytest.mark.parametrize("model", MODELS)
def test_every_member_is_that_of_the_file(server: Server, model: str) -> None:
    """To the last digit; conformal tells the coverage beside its alpha."""
    told = httpx.get(url(server, model)).json()["calibration"]
    kept = document(model)
    assert told.keys() == kept.keys() - UNTOLD
    levels = told.pop("conformal")
    assert told == {name: kept[name] for name in told}
    assert [level.pop("coverage") for level in levels] == [round(1 - level["alpha"], 6) for level in kept["conformal"]]
    assert levels == kept["conformal"]


@pytest.mark.parametrize("model", MODELS)
def test_it_says_whose_it_is(server: Server, model: str) -> None:
    """Name, version, digest of the graph and labels; the same id as in every answer's."""
    told = httpx.get(url(server, model)).json()
    found = bundle.discover(BUNDLES, (model,))[model]
    assert {name: told[name] for name in ("name", "version", "sha256", "labels")} == {
        "name": model,
        "version": found.manifest.version,
        "sha256": found.sha256,
        "labels": found.manifest.labels,
    }
    assert found.calibration
    assert told["calibration"]["id"] == found.calibration.id
    summary = httpx.get(f"{server.url}/v1/models/{model}").json()["calibration"]
    assert summary == {name: told["calibration"][name] for name in summary}
    assert summary.keys() < told["calibration"].keys()


def test_it_is_sent_once_to_who_keeps_it(server: Server) -> None:
    """By its tag, which every worker gives alike; another tag gets all of it."""
    first = httpx.get(url(server, "digits"))
    assert (first.status_code, first.headers["content-type"]) == (200, "application/json")
    for _ in range(6):  # a connection each, so that every worker is asked
        again = httpx.get(url(server, "digits"), headers={"if-none-match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == first.headers["etag"]
    other = httpx.get(url(server, "digits"), headers={"if-none-match": '"another"'})
    assert (other.status_code, other.content) == (200, first.content)


def test_head_tells_its_length(server: Server) -> None:
    """And sends nothing."""
    whole, head = httpx.get(url(server, "digits")), httpx.head(url(server, "digits"))
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-length", "content-type", "etag"):
        assert head.headers[name] == whole.headers[name]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_it_cannot_be_changed(server: Server, method: str) -> None:
    """405, with what is allowed."""
    response = httpx.request(method, url(server, "digits"), content=b"{}" if method != "DELETE" else None)
    assert response.status_code == 405
    assert response.headers["allow"] == "GET, HEAD"
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("path", ["owls/calibration", "digits/calibrations", "digits/calibration/id", "/calibration"])
def test_what_is_not_there_is_not_found(server: Server, path: str) -> None:
    """404, as a problem."""
    response = httpx.get(f"{server.url}/v1/models/{path}")
    assert response.status_code == 404
    assert response.json()["status"] == 404


def test_a_bundle_without_calibration_says_so(tmp_path: Path) -> None:
    """Its method is none, here as in its description and in its answers."""
    source = bundle.discover(BUNDLES, ("digits",))["digits"].directory
    directory = Path(shutil.copytree(source, tmp_path / "bundles" / "digits" / source.name))
    (directory / bundle.CALIBRATION).unlink()
    manifest = json.loads((directory / bundle.MANIFEST).read_text())
    del manifest["files"][bundle.CALIBRATION]
    (directory / bundle.MANIFEST).write_text(json.dumps(manifest))
    settings = {"TRUEODDS_BUNDLES": str(tmp_path / "bundles"), "TRUEODDS_WORKERS": "1"}
    with serving(tmp_path / "home", settings) as server:
        none = {"id": None, "method": "none"}
        told = httpx.get(url(server, "digits")).json()
        assert told["calibration"] == none
        assert told["name"] == "digits"
        assert httpx.get(f"{server.url}/v1/models/digits").json()["calibration"] == none
        (listed,) = httpx.get(f"{server.url}/v1/models").json()["models"]
        assert (listed["accuracy"], listed["ece_15"]) == (None, None)
