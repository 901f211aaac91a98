"""loadtest.variants: each form of a model is measured, beside what it is compared with."""

import json
import re
import shutil
from pathlib import Path

import pytest

from loadtest import variants
from service import bundle
from service.bundle import MANIFEST
from tests.conftest import committed

FORM = re.compile(r"(\w+) ([\d,]+) images/s \(× (\d+\.\d\d)\)")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A bundle, and what calls itself its int8 variant."""
    source = committed("digits")
    for folder in ("digits", "digits-int8"):
        shutil.copytree(source, tmp_path / folder / source.name)
    path = tmp_path / "digits-int8" / source.name / MANIFEST
    pin = bundle.load(source).seal.pin
    document = json.loads(path.read_text()) | {"variant": {"precision": "int8", "made_from": pin}}
    path.write_text(json.dumps(document))
    return tmp_path


@pytest.mark.slow
def test_each_form_is_told_beside_float32(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Figures of each, then a line a batch with a rate and a gain of each; float32's is 1."""
    assert variants.main(["digits", "--bundles", str(root), "--turns", "3"]) == 0
    *table, single, many = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in table[1:]] == ["float32", "int8"]
    for batch, line in zip(variants.BATCHES, (single, many), strict=True):
        assert line.startswith(f"batch {batch}: ")
        found = {form: (float(rate.replace(",", "")), float(gain)) for form, rate, gain in FORM.findall(line)}
        assert found.keys() >= {"float32", "int8"}
        assert found["float32"][1] == 1
        assert all(rate > 0 for rate, _ in found.values())
        # It is the same network.
        assert found["int8"][1] == pytest.approx(1, abs=0.5)


def test_a_model_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Is named."""
    assert variants.main(["cats", "--bundles", str(tmp_path)]) == 1
    assert "no bundle of cats" in capsys.readouterr().err
