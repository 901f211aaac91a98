"""export.bundles: versions follow each other, and what was once written stays."""

import argparse
from pathlib import Path

import pytest

from export.bundles import check_new, next_version, version


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ([], "1"),
        (["1"], "2"),
        (["9", "10"], "11"),
        (["1.9"], "1.10"),
        (["2", "1.9.9"], "3"),
        (["1.0.1", "1"], "1.0.2"),
        ([".3-abc", "latest"], "1"),
        (["1", ".2-abc"], "2"),
    ],
)
def test_the_next_version_is_one_higher(there: list[str], expected: str, tmp_path: Path) -> None:
    """In its last part; the first where there is none, and unfinished ones are none."""
    for name in there:
        (tmp_path / "pets" / name).mkdir(parents=True)
    (tmp_path / "birds" / "7").mkdir(parents=True)
    assert next_version(tmp_path, "pets") == expected


def test_where_there_are_no_bundles_the_first_version_is_1(tmp_path: Path) -> None:
    """Not even a folder for them."""
    assert next_version(tmp_path / "none", "pets") == "1"


@pytest.mark.parametrize("text", ["", "v1", "1.", "1.2.3.4", "../1", "1/2", "1 ", "-1"])
def test_what_is_no_version_is_refused(text: str) -> None:
    """It would be written and never be served, or land elsewhere."""
    with pytest.raises(argparse.ArgumentTypeError, match=r"would never be served; a version is like 1 or 1\.2"):
        version(text)
    assert version("1.2.3") == "1.2.3"


def test_a_version_stays_as_it_is(tmp_path: Path) -> None:
    """Whatever lies in its place."""
    check_new(tmp_path / "1")
    (tmp_path / "1").write_text("")
    with pytest.raises(FileExistsError, match="exists; choose another --version"):
        check_new(tmp_path / "1")
