"""Model cards: made of a bundle's figures alone, the same bytes each time, and vouched for by the manifest."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from export import cards, findings
from export.cards import CARD, MADE, made_of, main, remake
from export.pictures import PICTURES
from service import bundle
from service.bundle import CALIBRATION, MANIFEST, digest, newest
from service.errors import BundleError
from service.settings import BUNDLES
from service.trust import SIGNATURE
from tests.conftest import ROOT
from tests.measured import write_bundle

# Four pictures take matplotlib about a second.
pytestmark = pytest.mark.slow


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_bundle(tmp_path)


def state(directory: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of change of each file."""
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in sorted(directory.iterdir())}


def lines(path: Path) -> set[str]:
    return {line.rstrip(",") for line in path.read_text().splitlines()}


def test_a_bundle_gets_card_and_pictures_and_still_loads(directory: Path) -> None:
    """The manifest vouches for them, and otherwise says what it said; no other file is touched."""
    before, said = state(directory), json.loads((directory / MANIFEST).read_bytes())
    assert remake(directory) == [*PICTURES, CARD, MANIFEST]
    files = bundle.load(directory).manifest.files
    assert all(files[name] == digest(directory / name) for name in MADE)
    after, says = state(directory), json.loads((directory / MANIFEST).read_bytes())
    assert after.keys() == before.keys() | MADE
    for name in before.keys() - {CARD, MANIFEST}:
        assert after[name] == before[name]
    assert {**says, "files": None} == {**said, "files": None}
    assert {name: sha256 for name, sha256 in files.items() if name not in MADE} == {
        name: sha256 for name, sha256 in said["files"].items() if name not in MADE
    }


def test_the_manifest_keeps_its_form(directory: Path) -> None:
    """Written as an export writes it, readable by whom it was; its digests are all that changes in it."""
    (directory / MANIFEST).chmod(0o600)
    before = lines(directory / MANIFEST)
    remake(directory)
    changed = lines(directory / MANIFEST) - before
    assert changed
    assert all(any(f'"{name}"' in line for name in MADE) for line in changed)
    assert {(directory / name).stat().st_mode & 0o777 for name in {MANIFEST, *MADE}} == {0o600}


def test_what_is_the_same_is_not_written(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second run changes no byte and no time."""
    remake(directory)
    before = state(directory)
    assert main(["--bundles", str(directory.parents[1])]) == 0
    assert capsys.readouterr().out == f"{directory}: nothing to change\n"
    assert state(directory) == before


def test_another_sentence_changes_the_card_and_its_digest_alone(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bundle loads afterwards, and pictures stay as they were."""
    remake(directory)
    before = state(directory)
    monkeypatch.setattr(findings, "WORST", 2)
    assert remake(directory) == [CARD, MANIFEST]
    after = state(directory)
    assert {name for name in after if after[name] != before[name]} == {CARD, MANIFEST}
    assert bundle.load(directory).manifest.files[CARD] == digest(directory / CARD)


@pytest.mark.parametrize("damaged", [CARD, "confusion.svg"])
def test_a_damaged_or_missing_one_is_made_good(directory: Path, damaged: str) -> None:
    """The bundle does not load until then."""
    remake(directory)
    whole = state(directory)
    for damage in (lambda path: path.write_text("edited"), Path.unlink):
        damage(directory / damaged)
        with pytest.raises(BundleError, match=r"is not the file|is missing"):
            bundle.load(directory)
        assert remake(directory) == [damaged]
        assert {name: content for name, (content, _) in state(directory).items()} == {
            name: content for name, (content, _) in whole.items()
        }


def test_a_link_in_the_place_of_a_card_is_replaced_not_followed(directory: Path, tmp_path: Path) -> None:
    """Nothing outside of the bundle is written."""
    outside = tmp_path / "outside"
    outside.write_text("mine")
    (directory / CARD).unlink()
    (directory / CARD).symlink_to(outside)
    remake(directory)
    assert outside.read_text() == "mine"
    assert not (directory / CARD).is_symlink()
    bundle.load(directory)


def test_whatever_was_written_before_an_interruption_another_run_makes_it_good(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After any number of files, where an older card was vouched for."""
    remake(directory)
    whole = {name: content for name, (content, _) in state(directory).items()}
    made = {name: whole[name] for name in (*PICTURES, CARD)}
    monkeypatch.setattr(cards, "made_of", lambda *arguments: made)
    for last in range(len(MADE) + 1):
        make_older(directory)
        with monkeypatch.context() as interrupted:
            interrupted.setattr(cards, "write_whole", write_until(last))
            with pytest.raises(KeyboardInterrupt):
                remake(directory)
        assert sum((directory / name).read_bytes() == content for name, content in made.items()) == last
        remake(directory)
        assert {name: content for name, (content, _) in state(directory).items()} == whole


def make_older(directory: Path) -> None:
    """A sound bundle with another card and other pictures."""
    for name in MADE:
        (directory / name).write_text("older")
    manifest = json.loads((directory / MANIFEST).read_bytes())
    manifest["files"] |= {name: digest(directory / name) for name in MADE}
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    bundle.load(directory)


def write_until(last: int) -> Callable[[Path, bytes, int], None]:
    """Interrupted after so many files."""
    left = iter(range(last))

    def write(path: Path, content: bytes, mode: int) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        path.write_bytes(content)

    return write


@pytest.mark.parametrize("file", ["model.onnx", CALIBRATION])
def test_a_bundle_otherwise_damaged_is_refused(directory: Path, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In one line that names the file; nothing is written, and another bundle beside it gets its card."""
    other = write_bundle(directory.parents[1], "zoo")
    (directory / file).write_bytes((directory / file).read_bytes() + b" ")
    before = state(directory)
    assert main(["--bundles", str(directory.parents[1])]) == 1
    told = capsys.readouterr()
    assert told.err == (
        f"cards: {directory / file} is not the file its manifest describes; restore the bundle or export it again.\n"
    )
    assert state(directory) == before
    assert f"{other}: wrote" in told.out
    assert set(bundle.load(other).manifest.files) > MADE


def test_a_bundle_of_no_calibration_or_of_another_name_is_refused(directory: Path) -> None:
    """A card could tell nothing, or would tell it of another model."""
    document = json.loads((directory / MANIFEST).read_bytes())
    without = {name: sha256 for name, sha256 in document["files"].items() if name != CALIBRATION}
    (directory / MANIFEST).write_text(json.dumps(document | {"files": without}))
    with pytest.raises(BundleError, match="has no calibration"):
        remake(directory)
    (directory / MANIFEST).write_text(json.dumps(document | {"name": "birds"}))
    with pytest.raises(BundleError, match="holds birds/1"):
        remake(directory)


def test_the_newest_versions_are_meant_unless_a_model_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Others are left alone; a model that is not there is named."""
    old, new, other = (write_bundle(tmp_path, *place) for place in (("pets", "9"), ("pets", "10"), ("zoo", "1")))
    assert main(["pets", "--bundles", str(tmp_path)]) == 0
    assert (new / "confusion.svg").exists()
    assert not any((left / "confusion.svg").exists() for left in (old, other))
    assert main(["cows", "--bundles", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("cards: There is no bundle of cows under ")


def test_who_signed_it_is_told_to_sign_again(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only where something changed."""
    (directory / SIGNATURE).write_text("a signature")
    root = str(directory.parents[1])
    assert main(["--bundles", root]) == 0
    assert f"sign it again: python -m export sign {directory} --key KEY" in capsys.readouterr().out
    assert main(["--bundles", root]) == 0
    assert capsys.readouterr().out == f"{directory}: nothing to change\n"


def test_the_same_bytes_wherever_they_are_made(directory: Path, tmp_path: Path) -> None:
    """Another locale, time zone, order of hashes and matplotlibrc make no difference."""
    found = bundle.load(directory)
    assert found.calibration is not None
    here = made_of(directory, found.manifest, found.calibration)
    (tmp_path / "matplotlibrc").write_text("font.size: 20\naxes.formatter.use_locale: True\nsvg.fonttype: path\n")
    elsewhere = {
        "LC_ALL": other_locale(),
        "TZ": "Pacific/Kiritimati",
        "PYTHONHASHSEED": "7",
        "MATPLOTLIBRC": str(tmp_path / "matplotlibrc"),
    }
    for module in (["export.cards"], ["export", "cards"]):
        subprocess.run(
            [sys.executable, "-m", *module, "--bundles", str(directory.parents[1])],
            cwd=ROOT,
            env=os.environ | elsewhere,
            check=True,
        )
        assert {name: (directory / name).read_bytes() for name in MADE} == here
        for name in MADE:
            (directory / name).unlink()


def other_locale() -> str:
    """One with a decimal comma, where this machine has any."""
    listed = subprocess.run(["locale", "-a"], capture_output=True, text=True, check=False).stdout.split()
    return next((name for name in listed if name.startswith(("de_", "fr_", "nl_", "es_"))), "C")


def test_committed_cards_are_what_their_bundles_give() -> None:
    """`make cards` would change nothing in any of them; pictures are small, and links lead somewhere."""
    for directory in newest(BUNDLES).values():
        found = bundle.load(directory)
        assert found.calibration is not None
        made = made_of(directory, found.manifest, found.calibration)
        assert {name: (directory / name).read_bytes() for name in made} == made, f"{directory}: run make cards"
        assert max(len(made[name]) for name in PICTURES) < 60_000
        assert found.manifest.files.keys() >= MADE
