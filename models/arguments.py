"""What the options of the command line may be; each of these is for argparse and tells what it would take instead."""

import argparse

import torch


def positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def seed(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 2**32):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to {2**32 - 1}")
    return int(text)


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds, 0 or more")
    return value


def device(text: str) -> torch.device:
    """The CPU or a GPU that is there; "auto" is a GPU if there is one."""
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        named = torch.device(text)
    except RuntimeError:
        named = torch.device("meta")
    if named.type not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"{text!r} is no device to train on; cpu, cuda and cuda:1 are")
    if named.type == "cuda" and (named.index or 0) >= torch.cuda.device_count():
        raise argparse.ArgumentTypeError(f"torch {torch.__version__} finds no {text} here; cpu is always there")
    return named
