"""models.precision: bfloat16 where a recipe and the hardware have it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models import precision
from models.formats import DataError
from models.precision import Choice, chosen
from models.teaching import Plan, teach
from tests.lesson import RECIPE, Little, task

CPU = torch.device("cpu")


@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize("there", [False, True])
def test_bf16_where_recipe_and_hardware_have_it(wanted: bool, there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """And where somebody asks for it, if it is there."""
    monkeypatch.setattr(precision, "supported", lambda device: there)
    assert chosen("auto", wanted, CPU) == ("bf16" if wanted and there else "float32")
    assert chosen("float32", wanted, CPU) == "float32"
    if there:
        assert chosen("bf16", wanted, CPU) == "bf16"
    else:
        with pytest.raises(DataError, match="cpu has no bfloat16; train with --precision float32"):
            chosen("bf16", wanted, CPU)


def test_the_cpu_is_asked() -> None:
    """Yes or no; torch knows."""
    assert precision.supported(CPU) in (True, False)


@pytest.mark.parametrize(("choice", "recipe", "expected"), [("auto", False, "float32"), ("bf16", False, "bf16")])
def test_a_run_is_trained_and_recorded_in_its_precision(
    choice: Choice, recipe: bool, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network reckons in it; its weights are float32 all the same."""
    monkeypatch.setattr(precision, "supported", lambda device: True)
    monkeypatch.chdir(tmp_path)
    types = set()

    def build() -> Little:
        net = Little()
        net.conv.register_forward_hook(lambda module, given, made: types.add(made.dtype) if module.training else None)
        return net

    teach(task(replace(RECIPE, build=build, bf16=recipe)), Plan(1, precision=choice), ["train"], tmp_path / "w.pt")
    assert types == {torch.bfloat16 if expected == "bf16" else torch.float32}
    assert json.loads((tmp_path / "w.json").read_text())["precision"] == expected
    assert {value.dtype for value in torch.load(tmp_path / "w.pt").values()} == {torch.float32, torch.int64}
