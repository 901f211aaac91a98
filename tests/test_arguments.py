"""models.arguments: what makes no sense is told, with what would."""

import argparse
from collections.abc import Callable

import pytest
import torch

from models import arguments, train


@pytest.mark.parametrize(
    ("kind", "text", "told"),
    [
        (arguments.positive, "0", "'0' is not a whole number of 1 or more"),
        (arguments.positive, "1.5", "whole number"),
        (arguments.positive, "²", "whole number"),
        (arguments.seed, "-1", "'-1' is not a whole number from 0 to 4294967295"),
        (arguments.seed, "4294967296", "whole number"),
        (arguments.seconds, "-1", "number of seconds, 0 or more"),
        (arguments.seconds, "soon", "number of seconds, 0 or more"),
        (arguments.seconds, "nan", "number of seconds, 0 or more"),
        (arguments.seconds, "inf", "number of seconds, 0 or more"),
        (arguments.device, "gpu", "'gpu' is no device to train on; cpu, cuda and cuda:1 are"),
        (arguments.device, "mps", "no device to train on"),
        (arguments.device, "cuda:99", "finds no cuda:99 here; cpu is always there"),
    ],
)
def test_what_makes_no_sense_is_told(kind: Callable[[str], object], text: str, told: str) -> None:
    """By what it is and what would do."""
    with pytest.raises(argparse.ArgumentTypeError, match=told):
        kind(text)


def test_what_makes_sense_is_taken() -> None:
    """At its limits, too."""
    assert arguments.positive("1") == 1
    assert arguments.seed("0") == 0
    assert arguments.seed("4294967295") == 2**32 - 1
    assert arguments.seconds("0") == 0
    assert arguments.device("cpu") == torch.device("cpu")
    assert arguments.device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("option", [["--epochs", "0"], ["--seed", "x"], ["--patience", "-2"], ["--device", "tpu"]])
def test_the_command_line_refuses_it_before_any_data_is_read(
    option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """With the usage and the option's name."""
    with pytest.raises(SystemExit, match="2"):
        train.main(["digits", *option])
    assert f"argument {option[0]}: {option[1]!r} is no" in capsys.readouterr().err
