"""The record of a run: where and with what it was measured, appended to a file of JSON lines."""

import json
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from loadtest import wrk

PROJECT = Path(__file__).parent.parent
PACKAGES = ("bentoml", "httptools", "numpy", "onnxruntime", "onnxruntime-gpu", "orjson", "pillow", "uvicorn", "uvloop")


def circumstances(cores: int) -> dict[str, Any]:
    """When, of which commit, on what hardware and with which versions; `cores` is how many may be used."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "hardware": hardware(cores),
        "versions": versions(),
    }


def hardware(cores: int) -> dict[str, Any]:
    """The processor's model, the cores that may be used, memory in GiB, GPUs and kernel."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpus = [_field("Model", path) for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))]
    return {
        "cpu": _field("model name", Path("/proc/cpuinfo")) or platform.machine(),
        "cores": cores,
        "memory_gib": round(memory, 1),
        "gpus": gpus,
        "kernel": platform.release(),
    }


def versions() -> dict[str, str]:
    """Python, wrk and the packages that serve."""
    found = {"python": platform.python_version(), "wrk": wrk.version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The checkout's commit, with a + where files differ from it; None where this is no git checkout."""
    head, changes = _git("rev-parse", "--short=12", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
    return head + ("+" if changes else "") if head else None


def append(path: Path, document: dict[str, Any]) -> None:
    """Add one line, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_bytes() if path.exists() else b""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(before + json.dumps(document, allow_nan=False).encode() + b"\n")
    partial.replace(path)


def _field(name: str, path: Path) -> str:
    """The value of the first line `name: value`, empty where there is none."""
    try:
        found = re.search(rf"^{name}\s*:\s*(.*)$", path.read_text(), re.MULTILINE)
    except OSError:
        return ""
    return found[1].strip() if found else ""


def _git(*command: str) -> str | None:
    try:
        run = subprocess.run(  # noqa: S603  fixed commands  # nosec B603 B607
            ["git", *command],  # noqa: S607  whichever git there is
            cwd=PROJECT,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return None
    return run.stdout.strip() if run.returncode == 0 else None
