"""models.own: from somebody's own photographs to an endpoint."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models import networks, own, train
from models.formats import DataError
from models.own import Wish
from models.task import zoo
from models.teaching import Plan
from service import bundle
from tests.conftest import ROOT, serving

CLASSES = [f"place-{k}" for k in range(10)]


def photograph(label: int, rng: np.random.Generator) -> Image.Image:
    """A blurred spot at one of ten places, in much noise; of some size."""
    width, height = (int(side) for side in rng.integers(28, 41, 2))
    x, y = (2 * label + 1) % 10 / 10 * width, label // 5 * height / 2 + height / 4
    across, down = np.meshgrid(np.arange(width), np.arange(height))
    spot = np.exp(-((across - x) ** 2 + (down - y) ** 2) / 20)
    noise = rng.normal(80, 50, (height, width, 3))
    return Image.fromarray(np.clip(noise + 90 * spot[:, :, None], 0, 255).astype(np.uint8))


def photographs(folder: Path, classes: int, each: int) -> Path:
    rng = np.random.default_rng(0)
    for label in range(classes):
        (folder / CLASSES[label]).mkdir(parents=True)
        for number in range(each):
            photograph(label, rng).save(folder / CLASSES[label] / f"{number:03}.png")
    return folder


@pytest.fixture
def wish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wish:
    """Thirty photographs of each of three kinds."""
    monkeypatch.chdir(tmp_path)
    return Wish(photographs(tmp_path / "photos", 3, 30), size=16)


def test_what_is_begun_can_be_opened_again(wish: Wish) -> None:
    """With the same images in the same splits, fed the same way, to the same network."""
    begun, opened = own.begin("spots", wish), own.reopen("spots")
    assert begun.digests == opened.digests
    assert begun.spec == opened.spec
    assert begun.labels == opened.labels == ("place-0", "place-1", "place-2")
    for split in ("train", "fit", "conformal", "test"):
        one, other = begun.part(split), opened.part(split)
        assert np.array_equal(one.pixels(), other.pixels())
        assert np.array_equal(one.labels, other.labels)
        assert set(one.labels) == {0, 1, 2}
    assert [parameter.shape for parameter in opened.recipe.build().parameters()] == [
        parameter.shape for parameter in own.network("spots").parameters()
    ]
    assert own.known() == ["spots"]


def test_from_scratch_a_network_is_fed_numbers_of_mean_0_and_deviation_1(wish: Wish) -> None:
    """By its training images and no others."""
    training = own.begin("spots", wish).images("train").images
    assert training.shape[2:] == (16, 16)
    assert training.mean((0, 2, 3)).abs().max() < 1e-3
    assert (training.std((0, 2, 3)) - 1).abs().max() < 1e-2


def test_a_network_of_the_zoo_goes_on_seeing_as_it_did(wish: Wish) -> None:
    """Its input is that of the data set it was trained on, with other classes."""
    begun = own.begin("spots", replace(wish, start="cifar10", size=32))
    assert begun.spec == zoo("cifar10").spec
    assert begun.recipe.build().state_dict()["head.weight"].shape == (3, 256)


def _add(photos: Path) -> None:
    Image.new("RGB", (20, 20)).save(photos / "place-1" / "another.png")


def _change(photos: Path) -> None:
    Image.new("RGB", (20, 20)).save(photos / "place-1" / "000.png")


def _move(photos: Path) -> None:
    (photos / "place-1" / "000.png").rename(photos / "place-2" / "moved.png")


@pytest.mark.parametrize("alter", [_add, _change, _move])
def test_images_that_changed_since_are_noticed(alter: Callable[[Path], None], wish: Wish) -> None:
    """Added, changed or labelled otherwise: what was learnt might be tested on what it was taught."""
    own.begin("spots", wish)
    alter(wish.data)
    with pytest.raises(DataError, match="are not those that spots was trained on; train it again"):
        own.reopen("spots")


def test_files_may_be_renamed_meanwhile(wish: Wish) -> None:
    """For their content counts."""
    own.begin("spots", wish)
    (wish.data / "place-1" / "000.png").rename(wish.data / "place-1" / "renamed.png")
    own.reopen("spots")


def test_weights_that_learnt_other_images_are_not_judged_by_these(wish: Wish, tmp_path: Path) -> None:
    """Even if somebody has begun anew in their place."""
    begun = own.begin("spots", wish)
    weights = own.weights_of("spots")
    weights.with_suffix(".json").write_text(json.dumps({"splits": begun.digests}))
    assert networks.record(begun, weights) == {"splits": begun.digests}
    other = {**begun.digests, "train": "0" * 64}
    weights.with_suffix(".json").write_text(json.dumps({"splits": other}))
    with pytest.raises(DataError, match="was trained on other images than it would be judged by; train it again"):
        networks.record(begun, weights)


@pytest.mark.parametrize("content", [None, "", "{}", '{"data": 1}', "[]"])
def test_a_note_that_is_none_is_named(content: str | None, wish: Wish) -> None:
    """With the command that writes it."""
    own.begin("spots", wish)
    note = Path("runs/spots/task.json")
    note.unlink() if content is None else note.write_text(content)
    with pytest.raises(
        DataError, match=r"task\.json cannot be read .* python -m models\.train spots --data … writes it"
    ):
        own.reopen("spots")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("Spots", {}, "'Spots' cannot name a model: small letters"),
        ("../spots", {}, "cannot name a model"),
        ("digits", {}, "digits is a network of the zoo; give yours another name"),
        ("spots", {"size": 8}, "images cannot be 8 pixels a side, but from 16 to 512"),
        ("spots", {"size": 16, "start": "cifar10"}, "cifar10 sees 32 pixels a side, so leave --size out"),
        ("spots", {"data": Path("none")}, "there is no none; --data takes a folder"),
    ],
)
def test_what_cannot_be_is_told(name: str, change: dict[str, object], message: str, wish: Wish) -> None:
    """Before anything is written."""
    with pytest.raises(DataError, match=message):
        own.begin(name, replace(wish, **change))  # type: ignore[arg-type]
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["spots"], "'spots' is not one of cifar10, .*; images of your own come with --data"),
        (["digits", "--from", "cifar10"], "--from, --size and --no-mirror go with --data"),
        (["digits", "--no-mirror"], "go with --data"),
        (["spots", "--data", "photos", "--record-only"], "--record-only is for the zoo"),
        (["spots", "--data", "photos", "--from", "nothing"], "invalid choice: 'nothing'"),
    ],
)
def test_options_that_do_not_go_together_are_told(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the usage."""
    with pytest.raises(SystemExit, match="2"):
        train.main(options)
    assert re.search(message, capsys.readouterr().err)


def test_a_run_is_gone_on_with_on_its_own_terms_only(wish: Wish) -> None:
    """The record tells them, but not where the images are."""
    plan = Plan(epochs=1)
    train.train_own("spots", wish, plan)
    record = json.loads(own.weights_of("spots").with_suffix(".json").read_text())
    assert record["command"] == "python -m models.train spots --data photos --size 16 --seed 0 --epochs 1"
    assert record["splits"] == own.reopen("spots").digests
    train.train_own("spots", wish, plan)
    with pytest.raises(DataError, match=r"of another run \(terms: .*--no-mirror.*; delete it to start again"):
        train.train_own("spots", replace(wish, mirror=False), plan)


def test_findings_are_shown_and_kept(wish: Wish, capsys: pytest.CaptureFixture[str]) -> None:
    """Ten of a kind on the screen, all of them in the run's folder."""
    for number in range(12):
        (wish.data / "place-0" / f"note-{number:02}.txt").write_text("spot")
    own.begin("spots", wish)
    shown, kept = capsys.readouterr().out, Path("runs/spots/findings.txt").read_text()
    assert "12 of 102 files cannot be read" in shown
    assert "and 2 more" in shown
    assert "note-11.txt" not in shown
    assert all(f"note-{number:02}.txt: This is not an image" in kept for number in range(12))
    assert "3 classes; images: train 48, fit 12, conformal 12, test 18" in shown


def run(folder: Path, *command: str) -> str:
    """A command of the README, in a folder of its own; what it said."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.slow
def test_from_a_thousand_photographs_to_an_endpoint(tmp_path: Path) -> None:
    """Train, export, serve and ask, by the command line, with a broken file and a duplicate among the images."""
    photos = photographs(tmp_path / "photos", 10, 100)
    (photos / "place-3" / "broken.png").write_bytes((photos / "place-3" / "000.png").read_bytes()[:300])
    (photos / "place-4" / "again.png").write_bytes((photos / "place-4" / "000.png").read_bytes())
    said = run(
        tmp_path, "models.train", "spots", "--data", "photos", "--epochs", "12", "--no-mirror", "--device", "cpu"
    )
    assert "broken.png: The PNG is truncated" in said
    assert "again.png" in said
    assert "10 classes; images: train 500, fit 150, conformal 150, test 200" in said

    said = run(tmp_path, "export", "spots", "--bundles", "bundles")
    assert "coverage 0.99 is not offered" not in said
    found = bundle.load_in_place(tmp_path / "bundles" / "spots" / "1")
    assert found.manifest.labels == CLASSES
    assert found.calibration is not None
    figures = found.calibration.metrics.after
    assert figures.n == 200
    assert figures.accuracy > 0.7
    assert str(tmp_path) not in (tmp_path / "bundles" / "spots" / "1" / "manifest.json").read_text()

    rng = np.random.default_rng(1)
    with serving(tmp_path / "home", {"TRUEODDS_BUNDLES": str(tmp_path / "bundles"), "TRUEODDS_WORKERS": "1"}) as server:
        right = 0
        for label in range(10):
            photograph(label, rng).save(tmp_path / "asked.png")
            answer = server.post("spots", (tmp_path / "asked.png").read_bytes(), query="?top_k=all")
            assert answer.status_code == 200, answer.text
            predictions = answer.json()["predictions"]
            assert {each["label"] for each in predictions} == set(CLASSES)
            assert sum(each["probability"] for each in predictions) == pytest.approx(1, abs=1e-4)
            right += predictions[0]["label"] == CLASSES[label]
    assert right >= 5
