"""What a run of the benchmark shall measure, from the command line."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OUT = Path(".cache/bench")
PARTS = ("single", "bulk", "crowd")


@dataclass(frozen=True)
class Plan:
    """What is measured and how long. `seconds` is for one measurement of the service; the others take half of it."""

    models: tuple[str, ...] = ()
    connections: tuple[int, ...] = (1, 16, 64, 256)
    rounds: int = 3
    seconds: int = 4
    parts: tuple[str, ...] = PARTS
    out: Path = OUT
    url: str | None = None
    port: int = 0

    @property
    def short_seconds(self) -> int:
        return max(1, self.seconds // 2)


def parse(argv: Sequence[str] | None = None) -> Plan:
    """The command line as a plan."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.bench", description="Measure the service.")
    parser.add_argument("--models", type=_names, help="separated by commas; default: all that are served")
    parser.add_argument("--concurrency", type=_numbers, help="numbers of connections; default: 1,16,64,256")
    parser.add_argument("--rounds", type=positive, help="default: 3")
    parser.add_argument("--seconds", type=positive, help="of one measurement; default: 4")
    parser.add_argument("--parts", type=_parts, help=f"of {','.join(PARTS)}; default: all")
    parser.add_argument("--out", type=Path, help=f"folder of the history and the plot; default: {OUT}")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--url", type=_url, help="measure a service that is running; its CPU and memory are not seen")
    where.add_argument("--port", type=positive, help="port of the service that is started; default: a free one")
    parser.add_argument("--quick", action="store_true", help="1 round of 1 s at 1 and 64 connections")
    options = vars(parser.parse_args(argv))
    quick = {"connections": (1, 64), "rounds": 1, "seconds": 1} if options.pop("quick") else {}
    options["connections"] = options.pop("concurrency")
    chosen: dict[str, Any] = quick | {name: value for name, value in options.items() if value is not None}
    return Plan(**chosen)


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, map(str.strip, text.split(","))))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(sorted(set(map(positive, _names(text)))))


def _parts(text: str) -> tuple[str, ...]:
    unknown = set(_names(text)) - set(PARTS)
    if unknown:
        raise argparse.ArgumentTypeError(f"there is no part {min(unknown)!r}; there are {', '.join(PARTS)}")
    return _names(text)


def positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def _url(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"{text!r} does not begin with http:// or https://")
    return text.rstrip("/")
