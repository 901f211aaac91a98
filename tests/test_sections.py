"""What a card says of the model itself, and that all of it is sound Markdown."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from export import sections
from export.cards import card
from export.markdown import table
from export.pictures import PICTURES
from export.subject import PURPOSES, UNKNOWN, Subject
from export.terms import GATES, METHODS, SCORES, SPLITS
from service.documents import PARAMS, Calibration, Manifest, OodMethod, Split
from tests.measured import LABELS, SPEC, calibration

# Figures are measured at the first use, which takes about a second.
pytestmark = pytest.mark.slow
FILES = {"model.onnx": (1234567, "a" * 64), "confusion.svg": (89, "b" * 64)}


def subject(found: Calibration, **training: Any) -> Subject:
    manifest = Manifest(
        schema_version=1,
        name="pets",
        version="3",
        labels=list(LABELS),
        input=SPEC,
        files={},
        training=training,
        created_by={"python": "3.11.7", "onnx": "1.23"},
    )
    return Subject(manifest, found, FILES)


def tables(text: str) -> list[list[list[str]]]:
    """Each table's rows of cells, the head first, the rule left out. Fails where one is not sound."""
    found: list[list[list[str]]] = []
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if not line.startswith("|"):
            continue
        assert line.startswith("| ")
        assert line.endswith(" |")
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not lines[number - 1].startswith("|"):
            assert lines[number - 1] == ""
            assert re.fullmatch(r"\|( --- \|)+", lines[number + 1])
            found.append([])
        assert not found[-1] or len(cells) == len(found[-1][0])
        found[-1].append(cells)
    return [[head, *rows] for head, _, *rows in found]


@pytest.mark.parametrize("method", ["map_temperature", "identity", "isotonic_pooled"])
@pytest.mark.parametrize("dataset", [*PURPOSES, "another", None])
def test_a_card_is_sound_and_whole(method: str, dataset: str | None) -> None:
    """Tables with as many cells as heads, one title, each section once, every picture with words for it."""
    text = card(subject(calibration(method), dataset=dataset))
    assert len(tables(text)) == 9 + (dataset in PURPOSES) + (method != "identity")
    heads = re.findall(r"^(#+) (.+)$", text, re.M)
    assert [level for level, _ in heads].count("#") == 1
    assert len({title for _, title in heads}) == len(heads) == 14
    pictures = re.findall(r"!\[([^\]]+)\]\(([^)]+)\)", text)
    assert sorted(name for _, name in pictures) == sorted(PICTURES)
    assert all(len(words) > 30 for words, _ in pictures)
    assert "None" not in text.replace("None were set", "")
    assert "nan" not in text.split()
    assert text.endswith("|\n")


@given(st.lists(st.tuples(*[st.text("a|\\ \n\r\u2028", max_size=6)] * 3), max_size=3))
def test_no_cell_breaks_its_table(rows: list[tuple[str, ...]]) -> None:
    """Bars, line breaks and backslashes stay in their cell."""
    lines = table(("a", "b", "c"), rows).split("\n")
    assert len(lines) == len(rows) + 2
    for line in lines:
        assert len(line.splitlines()) == 1
        assert len(re.split(r"(?<!\\)(?:\\\\)*\|", line)) == 5


def test_details_are_those_of_the_manifest() -> None:
    """What is not known of a training run has no row."""
    training = {
        "command": "python -m models.train pets",
        "seed": 11,
        "epochs": 0,
        "minutes": 12.5,
        "hardware": "two cores",
        "versions": {"torch": "2.13"},
        "recalibrated": {"from": "sha256:ab", "labels": 1234},
    }
    found = calibration()
    rows = dict(tables(sections.details(subject(found, **training)))[0][1:])
    assert rows == {
        "model": "pets, version 3",
        "classes": "4: ant, bee | wasp, <cat>, $dog$",
        "input": "photo, 16 × 8 pixels",
        "training": "`python -m models.train pets`",
        "seed": "11",
        "epochs": "0",
        "hardware": "two cores",
        "time": "12.5 minutes",
        "trained with": "torch 2.13",
        "exported with": "python 3.11.7, onnx 1.23",
        "calibration": f"`{found.id}`",
        "calibrated anew": "by 1,234 labels of answers of `sha256:ab`",
    }
    bare = dict(tables(sections.details(subject(found)))[0][1:])
    assert bare.keys() == {"model", "classes", "input", "exported with", "calibration"}


def test_data_are_told_split_by_split() -> None:
    """How many, how many wrong, what for, and which."""
    rows = tables(sections.data(subject(calibration())))[0][1:]
    assert rows == [
        [split, f"{1711 + i:,}", str(37 + i), SPLITS[split], f"`{str(i) * 64}`"]
        for i, split in enumerate(("fit", "conformal", "eval"))
    ]


def test_files_are_told_with_size_and_digest() -> None:
    """In order of their names."""
    assert tables(sections.files(subject(calibration())))[0][1:] == [
        ["`confusion.svg`", "89", f"`{'b' * 64}`"],
        ["`model.onnx`", "1,234,567", f"`{'a' * 64}`"],
    ]


def test_strangeness_is_told_with_its_threshold() -> None:
    """And what it costs ordinary images."""
    text = sections.strangeness(subject(calibration()))
    assert "above -3.1416" in text
    assert "lets 98.50% of held-out ordinary images through" in text


def test_a_model_of_a_known_data_set_says_what_it_is_for() -> None:
    """Another says that nothing is known."""
    for dataset, purpose in (PURPOSES | {"another": UNKNOWN}).items():
        text = card(subject(calibration(), dataset=dataset))
        for said in (purpose.intended, purpose.beyond, purpose.images, purpose.concern):
            assert said in text


def test_the_link_to_the_evidence_beyond_the_distribution_is_there_once() -> None:
    """From where cards of this repository lie."""
    assert card(subject(calibration())).count("(../../../../docs/shift.md)") == 1


def test_everything_that_can_be_has_its_words() -> None:
    """Methods, splits, scores and gates of a document."""
    assert METHODS.keys() == PARAMS.keys()
    assert SPLITS.keys() == set(Split.__args__)  # type: ignore[attr-defined]
    assert SCORES.keys() == set(OodMethod.__args__)  # type: ignore[attr-defined]
    assert GATES.keys() == {"nll", "brier", "ece_15", "classwise_ece_15", "argmax", "accuracy_loss"}
