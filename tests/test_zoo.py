"""export.zoo: the table of README.md says what records, bundles and measurements say."""

import json
import re
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from export import zoo
from export.markdown import ABSENT, PageError, placed
from export.zoo import BEGIN, DOCS, END, entries, figures, renew
from export.zoo.figures import Calibrated, Figures, current, images_per_second
from export.zoo.page import HEAD, Entry, text
from models import MODELS, weights_path
from models.datasets import DATASETS
from models.records import Run, runs
from models.summary import parameters
from service.images import Pixels
from service.settings import BUNDLES
from tests.conftest import ROOT, calibration, data_dir

README = (ROOT / "README.md").read_text()
TRAINED = [name for name in MODELS if weights_path(name).exists()]
SERVED = sorted(path.name for path in BUNDLES.iterdir())
FIGURES = Figures(
    "0" * 64, Calibrated(10, "identity", 0.5, 0.25, 0.0123, 0.0456), {"1": 1234, "32": 56789}, "a chip", "a runtime 1.2"
)


def run(seed: int = 0, accuracy: float = 0.5, hardware: str = "1 core") -> Run:
    return Run(seed, "mnist", 3, 1.5, hardware, 10, accuracy, 0.25)


def entry(name: str = "net", runs: tuple[Run, ...] = (run(),), figures: Figures | None = FIGURES) -> Entry:
    return Entry(name, "Someone 1999", "mnist", 1234, 5_678_901, runs, figures)


def cells(line: str) -> dict[str, str]:
    return dict(zip(HEAD, line.strip("| ").split(" | "), strict=True))


# What is committed.


def test_the_table_in_the_readme_is_what_the_records_give() -> None:
    """`make zoo` would change nothing of the page."""
    assert placed(README, "the zoo", BEGIN, END, text(entries(ROOT / DOCS))) == README


@pytest.mark.parametrize("name", TRAINED)
def test_the_figures_are_of_the_committed_weights(name: str) -> None:
    """Or of the newest bundle, where there is one: neither has changed since it was measured."""
    found = json.loads((ROOT / DOCS / f"{name}.json").read_text())
    assert found["sha256"] == current(name, BUNDLES)


@pytest.mark.parametrize("name", SERVED)
def test_what_is_served_has_the_figures_it_is_served_with(name: str) -> None:
    """Those of its calibration.json, by its method."""
    found = Figures.of(json.loads((ROOT / DOCS / f"{name}.json").read_text())).calibrated
    told, null = calibration(name).metrics.after, calibration(name).metrics.null
    assert (found.method, found.n, found.accuracy) == (calibration(name).method, told.n, told.accuracy)
    assert (found.nll, found.ece_15, found.ece_15_null_p99) == (told.nll, told.ece_15, null.ece_15_p99)


def test_every_network_is_in_the_table() -> None:
    """Once, with its source, data set, parameters and the mean of its runs."""
    lines = README.partition(BEGIN)[2].partition(END)[0].splitlines()
    rows = {row["network"]: row for row in map(cells, [line for line in lines if line.startswith("| `")])}
    assert rows.keys() == {f"`{name}`" for name in MODELS}
    for name, recipe in MODELS.items():
        row = rows[f"`{name}`"]
        assert (row["source"], row["data"]) == (recipe.source, recipe.dataset)
        assert re.search(r"\d{4}", recipe.source)
        assert row["parameters"] == f"{parameters(recipe.build()):,}"
        if name in TRAINED:
            mean = np.mean([run.accuracy for run in runs(name)])
            assert row["accuracy"].startswith(f"{100 * mean:.2f} ")


# The page.


def test_figures_become_cells() -> None:
    """Each below its name, by the unit it has there."""
    row = cells(text([entry()]).splitlines()[2])
    assert list(row.values())[:5] == ["`net`", "Someone 1999", "mnist", "1,234", "5.68 M"]
    assert list(row.values())[5:] == ["50.00 %", "0.2500", "1.23 % (4.56 %)", "1,234", "56,789", "1.5 ¹"]


def test_several_seeds_give_mean_and_spread() -> None:
    """The standard deviation of a sample, and of how many it is."""
    several = tuple(run(seed, accuracy) for seed, accuracy in enumerate((0.5, 0.51, 0.52)))
    assert cells(text([entry(runs=several)]).splitlines()[2])["accuracy"] == "51.00 ± 1.00 % (3 seeds)"


def test_what_is_not_known_is_left_open() -> None:
    """A network without weights has parameters and costs, and nothing else."""
    row = cells(text([entry(runs=(), figures=None)]).splitlines()[2])
    assert [name for name, cell in row.items() if cell == ABSENT] == list(HEAD[5:])


def test_each_hardware_is_told_once() -> None:
    """By a mark of its own, for minutes and for speeds."""
    elsewhere = replace(FIGURES, hardware="another chip")
    shown = [entry("a"), entry("b", (run(hardware="1 GPU"),)), entry("c", figures=elsewhere)]
    table, _, told = text(shown).partition("\n\n")
    assert [cells(line)["minutes to train"][-1] for line in table.splitlines()[2:]] == ["¹", "²", "¹"]
    told = told.replace("\n", " ")
    assert told.endswith("¹ 1 core. ² 1 GPU.")
    assert "a runtime 1.2 on one core of a chip; a runtime 1.2 on one core of another chip." in told


def test_a_page_without_a_place_is_an_error() -> None:
    """It says which lines to put in."""
    with pytest.raises(PageError, match=f"no place for the zoo: put the lines {BEGIN} and {END}"):
        placed(f"{END}\n{BEGIN}\n", "the zoo", BEGIN, END, "")


# Measuring.


def test_time_in_which_others_compute_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 ms of computing for each 4 images make 2,000 images a second, though as much time again passes by waiting."""
    monkeypatch.setattr(figures, "ROUND_S", 0.05)
    shapes = set()

    def busy(pixels: Pixels) -> None:
        shapes.add((pixels.shape, pixels.dtype))
        until = time.process_time() + 0.002
        while time.process_time() < until:
            pass
        time.sleep(0.002)

    assert images_per_second(busy, DATASETS["mnist"].input, 4) == pytest.approx(2000, rel=0.15)
    assert shapes == {((4, 32, 32, 3), np.dtype(np.uint8))}


def test_figures_survive_being_written() -> None:
    """As JSON, to the last digit."""
    assert Figures.of(json.loads(json.dumps(asdict(FIGURES)))) == FIGURES


@pytest.mark.slow
@pytest.mark.skipif(data_dir() is None, reason="needs the full data sets in DATA_DIR")
def test_a_network_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its figures are those committed, and stay as they are until there are other weights."""
    monkeypatch.setenv("DATA_DIR", str(data_dir()))
    monkeypatch.setattr(figures, "ROUND_S", 0.01)
    name, path = "threes_or_sevens", tmp_path / "zoo" / "threes_or_sevens.json"
    assert renew(name, tmp_path / "zoo", BUNDLES)
    found, told = (Figures.of(json.loads(file.read_text())) for file in (path, ROOT / DOCS / path.name))
    assert (found.sha256, found.calibrated.method, found.calibrated.n) == (told.sha256, told.calibrated.method, 2038)
    assert asdict(found.calibrated) == pytest.approx(asdict(told.calibrated), abs=5e-4)
    assert found.images_per_second.keys() == {"1", "32"}
    written = path.stat().st_mtime_ns
    assert not renew(name, tmp_path / "zoo", BUNDLES)
    assert path.stat().st_mtime_ns == written
    path.write_text(json.dumps(asdict(replace(found, sha256="0" * 64))))
    assert renew(name, tmp_path / "zoo", BUNDLES)
    assert Figures.of(json.loads(path.read_text())).sha256 == found.sha256


def test_a_bundle_is_measured_as_it_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own graph, and the figures of its calibration: no data is read."""
    monkeypatch.setattr(figures, "ROUND_S", 0.01)
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "none"))
    assert renew("digits", tmp_path, BUNDLES)
    found, told = (Figures.of(json.loads((place / "digits.json").read_text())) for place in (tmp_path, ROOT / DOCS))
    assert (found.sha256, found.calibrated) == (told.sha256, told.calibrated)
    assert all(rate > 0 for rate in found.images_per_second.values())


# The command.


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A page of one line and the place for the table."""
    path = tmp_path / "README.md"
    path.write_text(f"# A page\n\n{BEGIN}\n{END}\n\nThe end.\n")
    return path


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network but this one, whose figures are there."""
    monkeypatch.setattr(zoo, "MODELS", {"simple_cnn": MODELS["simple_cnn"]})


def test_the_command_writes_the_table_and_nothing_else(
    page: Path, alone: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Between the two lines; again it changes nothing."""
    assert zoo.main(["--readme", str(page), "--docs", str(ROOT / DOCS)]) == 0
    written = page.read_text()
    assert written == placed(written, "the zoo", BEGIN, END, text(entries(ROOT / DOCS)))
    assert written.startswith(f"# A page\n\n{BEGIN}\n\n| network |")
    assert written.endswith(f"\n\n{END}\n\nThe end.\n")
    assert "| `simple_cnn` | " in written
    assert capsys.readouterr().out == f"wrote {page}\n"
    assert zoo.main(["--readme", str(page), "--docs", str(ROOT / DOCS)]) == 0
    assert page.read_text() == written


def test_a_page_without_a_place_is_told_before_anything_is_measured(
    page: Path, alone: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line, and nothing is written."""
    page.write_text("# A page\n")
    assert zoo.main(["--readme", str(page), "--docs", str(tmp_path / "zoo")]) == 1
    assert capsys.readouterr().err.startswith("zoo: there is no place for the zoo: put the lines <!--")
    assert not (tmp_path / "zoo").exists()


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"sha256": "1", "calibrated": 1}'])
def test_damaged_figures_are_named(
    damage: str, page: Path, alone: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the remedy is."""
    before = page.read_text()
    (tmp_path / "simple_cnn.json").write_text(damage)
    assert zoo.main(["--readme", str(page), "--docs", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert re.match(r"zoo: .*simple_cnn\.json has no figures .* delete it to have them measured again", told)
    assert page.read_text() == before
