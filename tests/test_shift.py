"""What a model does beyond its distribution: the figures, what is kept of a run, the page, and the command."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from export import shift
from export.markdown import PageError
from export.shift.answers import Answers, Kept
from export.shift.conditions import CLEAN, Condition, conditions, spread
from export.shift.figures import Detection, Figures, Report, Subject, mean
from export.shift.page import placed, text
from export.shift.plot import svg
from models import MODELS
from models.corruptions import CORRUPTIONS
from models.datasets import load, pixels
from models.formats import Pixels
from service import bundle
from service.backends import Backend, Outputs, Placement, Plan, onnx
from service.calibration import softmax
from service.settings import BUNDLES
from tests.conftest import ROOT, data_dir

whole = pytest.mark.skipif(data_dir() is None, reason="needs the data sets in DATA_DIR")
PAGE = ROOT / "docs" / "shift.md"
SERVED = sorted(path.name for path in BUNDLES.iterdir())


# Figures.


def test_figures_are_those_of_their_definitions() -> None:
    """Ten images, two of them flagged, worked out by hand."""
    sure, unsure = [0.9, 0.1], [0.4, 0.6]
    answers = Answers(
        np.array([sure] * 6 + [unsure] * 4, np.float32),
        np.arange(10, dtype=np.float32),
        np.array([False] * 8 + [True] * 2),
    )
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 1, 1, 0])
    expected = {
        "n": 10,
        "accuracy": 0.6,
        "confidence": 0.78,
        "ece_15": 0.6 * 0.4 + 0.4 * 0.15,
        "nll": -np.log([0.9] * 3 + [0.1] * 3 + [0.6] * 3 + [0.4]).mean(),
        "flagged": 0.2,
        "accuracy_unflagged": 5 / 8,
        "ece_15_unflagged": 0.75 * 0.4 + 0.25 * 0.4,
    }
    assert vars(Figures.of(answers, labels)) == pytest.approx(expected, abs=1e-6)


def test_where_all_are_flagged_nothing_is_said_of_the_rest() -> None:
    """No figure, rather than a zero or a NaN."""
    answers = Answers(np.full((3, 2), 0.5, np.float32), np.ones(3, np.float32), np.ones(3, bool))
    found = Figures.of(answers, np.zeros(3, np.int64))
    assert (found.accuracy_unflagged, found.ece_15_unflagged) == (None, None)
    assert mean([found], "ece_15_unflagged") is None


def test_a_mean_leaves_out_what_has_no_figure() -> None:
    """Conditions count alike, whatever their number of images."""
    one = Figures(10, 0.5, 0.5, 0.1, 1.0, 0.2, 0.4, None)
    other = replace(one, n=1000, accuracy=0.7, ece_15_unflagged=0.3)
    assert mean([one, other], "accuracy") == pytest.approx(0.6)
    assert mean([one, other], "ece_15_unflagged") == 0.3


# What is kept.


class Plain:
    """A backend of a few sums, which counts the images it is asked about and may stop at a number of them."""

    device = "cpu"
    placement = Placement("plain", "cpu", "", "", 1, 0)
    plan = Plan()

    def __init__(self, stop: int | None = None) -> None:
        self.stop = stop
        self.asked = 0

    def forward(self, pixels: Pixels, *, alone: bool = False) -> Outputs:
        if self.stop is not None and self.asked >= self.stop:
            raise KeyboardInterrupt
        self.asked += len(pixels)
        logits = pixels.mean(axis=(1, 2), dtype=np.float32)
        score = -logits.max(axis=1)
        return Outputs(logits, softmax(logits), logits > 127, score, score > -129, score)


class Counting:
    """Another backend, which counts the images it is asked about."""

    device = "cpu"

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.placement, self.plan = backend.placement, backend.plan
        self.asked = 0

    def forward(self, pixels: Pixels, *, alone: bool = False) -> Outputs:
        self.asked += len(pixels)
        return self._backend.forward(pixels)


def condition(seed: int = 0, n: int = 700) -> Condition:
    images = np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3), np.uint8)
    return Condition("noise", n, None, lambda which: images[which])


def test_answers_are_kept_and_found_again(tmp_path: Path) -> None:
    """The second time the model is not asked, and the answers are the same to the bit; progress is told in full."""
    kept, counting = Kept(tmp_path), Plain()
    told: list[int] = []
    first = kept.answers(condition(), counting, told.append)
    assert (counting.asked, sum(told)) == (700, 700)
    told.clear()
    again = kept.answers(condition(), counting, told.append)
    assert (counting.asked, sum(told)) == (700, 700)
    outputs = Plain().forward(condition().draw(np.arange(700)))
    for name in ("probabilities", "ood_score", "is_ood"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
        np.testing.assert_array_equal(getattr(first, name), getattr(outputs, name))
    assert 0 < again.is_ood.sum() < 700


def test_answers_to_other_images_are_not_taken_for_these(tmp_path: Path) -> None:
    """Whoever changes how a condition is drawn, or how many are drawn, gets new answers."""
    kept, counting = Kept(tmp_path), Plain()
    kept.answers(condition(), counting, len_ignored)
    kept.answers(condition(seed=1), counting, len_ignored)
    kept.answers(condition(n=650), counting, len_ignored)
    assert counting.asked == 700 + 700 + 650


def test_a_damaged_file_is_answered_anew(tmp_path: Path) -> None:
    """One that was cut short, as by a full disk."""
    kept, counting = Kept(tmp_path), Plain()
    kept.answers(condition(), counting, len_ignored)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:1000])
    kept.answers(condition(), counting, len_ignored)
    assert counting.asked == 1400


def test_an_interrupted_condition_leaves_nothing_half_done(tmp_path: Path) -> None:
    """What was not finished is not kept; what was, is."""
    kept = Kept(tmp_path)
    kept.answers(condition(), Plain(), len_ignored)
    with pytest.raises(KeyboardInterrupt):
        kept.answers(condition(seed=1), Plain(stop=600), len_ignored)
    counting = Plain()
    kept.answers(condition(), counting, len_ignored)
    assert counting.asked == 0
    kept.answers(condition(seed=1), counting, len_ignored)
    assert counting.asked == 700


def len_ignored(_n: int) -> None:
    """Nobody watches."""


def test_a_subset_is_spread_evenly() -> None:
    """All where there are not more; otherwise so many, at steps that differ by one at most."""
    assert spread(10, None).tolist() == spread(10, 99).tolist() == list(range(10))
    chosen = spread(10_000, 300)
    assert len(chosen) == 300
    assert set(np.diff(chosen)) == {33, 34}
    assert chosen[-1] < 10_000


# Page and picture.


def report() -> Report:
    rng = np.random.default_rng(0)

    def figures() -> Figures:
        return Figures(100, *rng.random(7).tolist())

    return Report(
        Subject("digits", "1", "ab" * 32, "sha256:" + "cd" * 32),
        "mnist",
        100,
        10_000,
        0,
        "energy",
        figures(),
        {name: [figures() for _ in known.severities] for name, known in CORRUPTIONS["mnist"].items()},
        {"usps": figures()},
        {"usps": Detection(100, 0.75, 0.5, 0.25), "fashion_mnist": Detection(100, 0.9984, 0.01, 0.96)},
        {"onnxruntime": "1.2.3"},
    )


def test_the_page_of_the_repository_has_a_place_for_every_model() -> None:
    """And nothing beside the place is changed by filling it, once or again."""
    page = PAGE.read_text()
    for name in SERVED:
        page = placed(page, name, "FIGURES")
        assert placed(page, name, "FIGURES") == page
    assert page.count("\n\nFIGURES\n\n") == len(SERVED)

    def around(text: str) -> str:
        return re.sub(r"(make shift -->).*?(<!-- \w+: end)", r"\1\2", text, flags=re.DOTALL)

    assert around(page) == around(PAGE.read_text())


@pytest.mark.parametrize("page", ["", "<!-- digits: end -->", "<!-- digits: written by make shift -->\n"])
def test_a_page_without_a_place_is_an_error(page: str) -> None:
    """It says which lines to put in."""
    with pytest.raises(PageError, match=r"no place for digits: put the lines <!-- digits: written.* and <!--"):
        placed(page, "digits", "FIGURES")


def test_the_tables_have_the_figures() -> None:
    """Each corruption in a row, with its figures in percent; the sets from elsewhere; how many images there were."""
    shown, lines = report(), text(report()).splitlines()
    assert "100 test images of 10,000, evenly chosen" in lines[0]
    for name, severities in shown.corruptions.items():
        (row,) = [line for line in lines if line.startswith(f"| {name} |")]
        for found in severities:
            assert f"| {100 * found.accuracy:.1f} · {100 * found.ece_15:.1f} · {100 * found.flagged:.1f} |" in row
    assert "| fashion_mnist | 100 | 99.8 % | 1.0 % | 96.0 % |" in lines
    (accuracy,) = [line for line in lines if line.startswith("| accuracy |")]
    third = np.mean([severities[2].accuracy for severities in shown.corruptions.values()])
    assert accuracy.split(" | ")[4] == f"{100 * third:.1f} %"
    widths = {line.count("|") for line in lines if line.startswith(("| mean over", "| accuracy |"))}
    assert len(widths) == 1


@pytest.mark.slow
def test_the_picture_is_the_same_for_the_same_figures() -> None:
    """To the byte, with no date; other figures give another."""
    shown = report()
    picture = svg(shown)
    assert picture == svg(report())
    assert b"<dc:date>" not in picture
    assert svg(replace(shown, clean=replace(shown.clean, accuracy=0.123))) != picture
    for label in (b"accuracy", b"rotation", b"flagged as out of distribution"):
        assert label in picture


# The command.


def run(name: str, images: int, folder: Path, *more: str) -> tuple[int, dict[str, Any], str]:
    """Its status, what it wrote of figures, and the page."""
    folder.mkdir(exist_ok=True)
    if not (folder / "shift.md").exists():
        (folder / "shift.md").write_text(PAGE.read_text())
    arguments = ["--images", str(images), "--docs", str(folder), "--cache", str(folder / "cache"), *more]
    status = shift.main([name, "--bundles", str(BUNDLES), *arguments])
    written = folder / "shift" / f"{name}.json"
    return status, json.loads(written.read_text()) if written.exists() else {}, (folder / "shift.md").read_text()


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_DIR", str(data_dir()))


@whole
@pytest.mark.slow
@pytest.mark.parametrize("name", SERVED)
def test_the_command_measures_a_committed_bundle(name: str, data: None, tmp_path: Path) -> None:
    """Every corruption and severity; the figures of the test set are those of the graph run by itself."""
    status, figures, page = run(name, 20, tmp_path)
    assert status == 0
    dataset = MODELS[name].dataset
    counts = {corruption: len(found) for corruption, found in figures["corruptions"].items()}
    assert counts == {corruption: len(known.constants) for corruption, known in CORRUPTIONS[dataset].items()}
    assert (figures["n"], figures["of"]) == (20, 10_000)
    found = bundle.discover(BUNDLES, (name,))[name]
    assert found.calibration is not None
    assert figures["score"] == found.calibration.ood.method
    assert figures["model"]["sha256"] == found.sha256

    known = load(dataset)
    session = onnxruntime.InferenceSession(found.directory / onnx.FILE, providers=["CPUExecutionProvider"])
    fed = pixels(dataset, known.test_images[::500])
    probabilities, is_ood = session.run(["probabilities", "is_ood"], {session.get_inputs()[0].name: fed})
    labels = known.test_labels[::500]
    assert figures["clean"]["accuracy"] == (probabilities.argmax(1) == labels).mean()
    assert figures["clean"]["confidence"] == pytest.approx(probabilities.max(1).mean(), abs=1e-5)
    assert figures["clean"]["flagged"] == is_ood.mean()
    assert f"`{name}` version {found.manifest.version}" in page
    assert (tmp_path / "shift" / f"{name}.svg").read_bytes().startswith(b"<?xml")


@whole
@pytest.mark.slow
def test_a_second_run_takes_up_the_first(data: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks about nothing that was answered, and writes the same files to the byte."""
    assert run("digits", 20, tmp_path)[0] == 0
    files = [tmp_path / "shift.md", tmp_path / "shift" / "digits.json", tmp_path / "shift" / "digits.svg"]
    before = [file.read_bytes() for file in files]
    made: list[Counting] = []

    def counting(*arguments: Any, **more: Any) -> Counting:
        made.append(Counting(onnx.load(*arguments, **more)))
        return made[0]

    monkeypatch.setattr(shift, "onnx", type("Loads", (), {"load": staticmethod(counting)}))
    lost = next((tmp_path / "cache").rglob("rotation-3-*.npz"))
    lost.unlink()
    assert run("digits", 20, tmp_path)[0] == 0
    assert made[0].asked == 20
    assert [file.read_bytes() for file in files] == before


@whole
@pytest.mark.slow
def test_conditions_are_the_test_set_corrupted_and_then_fed(data: None) -> None:
    """Corrupted as published, before the pictures take the road of an upload; a part alone is as in the whole."""
    asked = conditions("mnist", 40, seed=0)
    known, chosen = load("mnist"), spread(10_000, 40)
    expected = CORRUPTIONS["mnist"]["gaussian_noise"].corrupted(known.test_images[chosen], 2, chosen)
    found = asked.corruptions["gaussian_noise"][1]
    np.testing.assert_array_equal(found.draw(np.arange(40)), pixels("mnist", expected))
    np.testing.assert_array_equal(found.draw(np.array([7])), pixels("mnist", expected[[7]]))
    assert found.labels is not None
    np.testing.assert_array_equal(found.labels, known.test_labels[chosen])
    names = [condition.name for condition in asked]
    assert names[0] == CLEAN
    assert len(set(names)) == len(names) == 1 + 3 + 6 + 4 * 5
    assert asked.elsewhere["usps"].labels is not None
    assert asked.elsewhere["fashion_mnist"].labels is None


def uncalibrated(folder: Path) -> Path:
    """Bundles of which `digits` has no calibration, and says so."""
    copied = folder / "bundles" / "digits"
    newest = bundle.discover(BUNDLES, ("digits",))["digits"]
    shutil.copytree(newest.directory, copied / newest.manifest.version)
    manifest = copied / newest.manifest.version / bundle.MANIFEST
    document = json.loads(manifest.read_text())
    del document["files"][bundle.CALIBRATION]
    manifest.write_text(json.dumps(document))
    return copied.parent


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No page, no such version, no calibration, no data, each with its remedy and status 1; nothing is written."""
    with_page = tmp_path / "docs"
    with_page.mkdir()
    (with_page / "shift.md").write_text(PAGE.read_text())
    common = ["digits", "--bundles", str(BUNDLES), "--cache", str(tmp_path / "cache")]
    assert shift.main([*common, "--docs", str(tmp_path)]) == 1
    assert str(tmp_path / "shift.md") in capsys.readouterr().err
    assert shift.main([*common, "--docs", str(with_page), "--version", "99"]) == 1
    assert "99" in capsys.readouterr().err
    assert shift.main([*common[:1], "--bundles", str(uncalibrated(tmp_path)), "--docs", str(with_page)]) == 1
    assert "no calibration" in capsys.readouterr().err
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATA_DIR", str(tmp_path))
        assert shift.main([*common, "--docs", str(with_page)]) == 1
    assert "set DATA_DIR" in capsys.readouterr().err
    assert [path.name for path in with_page.iterdir()] == ["shift.md"]
    for wrong in ("0", "-3", "many"):
        with pytest.raises(SystemExit):
            shift.main([*common, "--images", wrong])


@pytest.mark.slow
def test_the_command_is_one_of_export() -> None:
    """`python -m export shift` is what the page says."""
    command = [sys.executable, "-m", "export", "shift", "--help"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "python -m export shift" in told
    assert "--images" in told
