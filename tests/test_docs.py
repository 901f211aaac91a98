"""The documents say what the program does."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import httpx
import pytest

from export.scoring import METRICS
from models import train
from service import VERSION, bundle
from service.calibrators import METHODS
from service.errors import Problem
from service.openapi import document
from service.settings import BUNDLES, PREFIX, Settings
from tests.conftest import ROOT, Server, calibration, fixtures

README = (ROOT / "README.md").read_text()


def test_every_setting_is_documented_with_its_default() -> None:
    """docs/settings.md has a row for each field, and none for anything else."""
    rows = dict(re.findall(r"^\| `(TRUEODDS_\w+)` \| `?([^`|]*?)`? \|", (ROOT / "docs/settings.md").read_text(), re.M))
    fields = {PREFIX + name.upper(): getattr(Settings(), name) for name in Settings.model_fields}
    assert rows.keys() == fields.keys()
    told = {
        "TRUEODDS_BUNDLES": "models/bundles",
        "TRUEODDS_MODELS": "all",
        "TRUEODDS_PINNED": "none",
        "TRUEODDS_SIGNED_BY": "none",
        "TRUEODDS_FORMATS": "png,jpeg,gif,webp,bmp",
        "TRUEODDS_COMPILED": "~/.cache/trueodds",
        "TRUEODDS_FEEDBACK": "sqlite:///…",
        "TRUEODDS_API_KEYS": "none",
        "TRUEODDS_OIDC_ISSUER": "none",
        "TRUEODDS_TLS_CERT": "none",
        "TRUEODDS_TLS_KEY": "none",
        "TRUEODDS_TLS_CLIENT_CA": "none",
        "TRUEODDS_OIDC_AUDIENCE": "none",
        "TRUEODDS_OIDC_JWKS_URL": "none",
    }
    for name, default in fields.items():
        assert rows[name] == told.get(name, str(default)), name


def test_every_option_of_training_is_documented() -> None:
    """docs/training.md has a row for each, and none for anything else."""
    text = (ROOT / "docs/training.md").read_text()
    rows = set(re.findall(r"^\| `(--[a-z-]+)", text, re.M))
    options = {name for action in train._parser()._actions for name in action.option_strings}
    assert rows == options - {"-h", "--help"}


def test_every_method_and_figure_of_calibration_is_documented() -> None:
    """docs/calibration.md has a row for each method and each metric, and none for anything else."""
    text = (ROOT / "docs/calibration.md").read_text().partition("## From logits to probabilities")[2]
    rows = {name for line in re.findall(r"^\| (`.*?) \|", text, re.M) for name in re.findall(r"`(\w+)`", line)}
    assert rows == METHODS.keys() | METRICS.keys()


def test_every_route_is_in_the_readme() -> None:
    """A newcomer finds each path of the contract on the first page."""
    for path in document(VERSION)["paths"]:
        assert path in README


def test_every_status_is_in_the_readme() -> None:
    """So with the statuses a client may meet."""

    def statuses(kind: type[Problem]) -> set[int]:
        return {kind.status}.union(*(statuses(child) for child in kind.__subclasses__()))

    assert all(f"| {status} |" in README for status in statuses(Problem) - {500})


def test_the_answer_in_the_readme_is_the_true_one(server: Server) -> None:
    """The first screen's command, run against this service, gives the first screen's output."""
    shown = json.loads(re.findall(r"```json\n(.*?)```", README, re.S)[0])
    command = shlex.split(re.findall(r"```sh\n(curl .*?)```", README, re.S)[0].replace("\\\n", " "))
    image = (ROOT / command[command.index("--data-binary") + 1].removeprefix("@")).read_bytes()
    url = command[-1].replace("localhost:3000", server.url)
    given = httpx.post(url, content=image, headers={"content-type": "image/png"}).json()
    shown.pop("request_id")
    given.pop("request_id")
    for one, other in zip(shown.pop("predictions"), given.pop("predictions"), strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    assert shown["ood"].pop("score") == pytest.approx(given["ood"].pop("score"), abs=1e-4)
    assert shown == given


def test_the_figures_in_the_readme_are_the_published_ones() -> None:
    """Accuracy and ECE of each model, as in its bundle."""
    for name in bundle.discover(BUNDLES):
        metrics = calibration(name).metrics
        row = next(line for line in README.splitlines() if line.startswith(f"| `{name}` |"))
        for figure in (metrics.after.accuracy, metrics.before.ece_15, metrics.after.ece_15, metrics.null.ece_15_p99):
            assert f"{figure:.2%}".replace("%", " %") in row


def test_the_fixtures_are_small_and_real() -> None:
    """At most a megabyte, 64 images of each kind."""
    files = [path for path in (ROOT / "tests/fixtures").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 1_000_000
    assert len(fixtures("digits")) == len(fixtures("cifar10")) == 64


def test_the_readme_names_only_files_and_targets_that_exist() -> None:
    """Links lead somewhere; make knows the targets."""
    for link in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / link.partition("#")[0]).exists(), link
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"make ([a-z-]+)", README)) - {"sets"}:
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_nothing_tracked_names_a_path_of_one_machine() -> None:
    """No file carries the path of the checkout it was written in, or of somebody's home."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.decode().split("\0")):
        path = ROOT / name
        content = path.read_bytes() if path.is_file() else b""
        assert str(ROOT).encode() not in content, name
        assert str(Path.home()).encode() + b"/" not in content, name
