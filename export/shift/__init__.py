"""Measure a bundle beyond its distribution: `python -m export shift <model>`.

Its ONNX form is asked about the test set, about the test set under every corruption and severity, and about images from
elsewhere. Figures go to docs/shift/<model>.json, a picture to <model>.svg beside it, tables to docs/shift.md. What is
answered is kept, and the same command takes up an interrupted run.
"""

import argparse
import json
import sys
from dataclasses import asdict
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import onnxruntime
from tqdm import tqdm

from export.markdown import PageError
from export.shift.answers import Answers, Kept
from export.shift.conditions import CLEAN, Conditions, conditions
from export.shift.figures import Detection, Figures, Report, Subject
from export.shift.page import placed, text
from export.shift.plot import svg
from models import MODELS
from models.formats import DataError
from service import bundle
from service.backends import onnx
from service.bundle import Bundle
from service.documents import Calibration
from service.errors import BundleError, StartupError
from service.files import write_whole
from service.settings import BUNDLES, available_cores

DOCS, CACHE = Path("docs"), Path(".cache/shift")
SEED = 0
PACKAGES = ("numpy", "scipy", "pillow")
# Of the figures written; more would change with the order of a sum.
DECIMALS = 6


def main(argv: list[str] | None = None) -> int:
    arguments = _parsed(argv)
    try:
        measure(
            _found(arguments.bundles, arguments.name, arguments.version),
            arguments.docs,
            Kept(arguments.cache),
            arguments.images,
        )
    except (StartupError, DataError, PageError, OSError) as error:
        print(f"shift: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("shift: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def measure(found: Bundle, docs: Path, kept: Kept, images: int | None = None) -> Report:
    """Ask, and write all three files. Raises BackendError, BundleError, DataError, PageError or OSError."""
    name = found.manifest.name
    page = docs / "shift.md"
    # Half an hour is not spent before it is known what is measured and where the figures go.
    _calibration(found)
    placed(page.read_text(), name, "")
    asked = conditions(MODELS[name].dataset, images, SEED)
    report = reported(found, asked, answered(found, asked, kept))
    (docs / "shift").mkdir(exist_ok=True)
    _write(docs / "shift" / f"{name}.json", (json.dumps(_rounded(asdict(report)), indent=1) + "\n").encode())
    _write(docs / "shift" / f"{name}.svg", svg(report))
    _write(page, placed(page.read_text(), name, text(report)).encode())
    return report


def answered(found: Bundle, asked: Conditions, kept: Kept) -> dict[str, Answers]:
    """What the bundle's ONNX form answers, by the conditions' names."""
    backend = onnx.load(found.directory, "cpu", available_cores(), seal=found.seal)
    own = Kept(kept.directory / f"{found.manifest.name}-{found.sha256[:16]}")
    answers = {}
    with tqdm(total=sum(condition.n for condition in asked), unit=" images", disable=None) as bar:
        for condition in asked:
            bar.set_description(condition.name)
            answers[condition.name] = own.answers(condition, backend, bar.update)
    return answers


def reported(found: Bundle, asked: Conditions, answers: dict[str, Answers]) -> Report:
    """The figures of what was answered."""
    clean = asked.clean
    assert clean.labels is not None
    manifest, labels, calibration = found.manifest, clean.labels, _calibration(found)
    return Report(
        model=Subject(manifest.name, manifest.version, found.sha256, calibration.id),
        dataset=MODELS[manifest.name].dataset,
        n=clean.n,
        of=asked.of,
        seed=SEED,
        score=calibration.ood.method,
        clean=Figures.of(answers[CLEAN], labels),
        corruptions={
            name: [Figures.of(answers[condition.name], labels) for condition in severities]
            for name, severities in asked.corruptions.items()
        },
        shifted={
            name: Figures.of(answers[name], condition.labels)
            for name, condition in asked.elsewhere.items()
            if condition.labels is not None
        },
        elsewhere={name: Detection.of(answers[CLEAN], answers[name]) for name in asked.elsewhere},
        versions={"onnxruntime": onnxruntime.__version__} | {package: installed(package) for package in PACKAGES},
    )


def _parsed(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m export shift", description=__doc__)
    parser.add_argument("name", choices=sorted(MODELS))
    parser.add_argument("--version", help="of the bundle (default: the newest)")
    parser.add_argument("--bundles", type=Path, default=BUNDLES, help=f"where bundles are kept (default: {BUNDLES})")
    parser.add_argument("--docs", type=Path, default=DOCS, help=f"where shift.md is (default: {DOCS})")
    parser.add_argument("--cache", type=Path, default=CACHE, help=f"where answers are kept (default: {CACHE})")
    parser.add_argument("--images", type=_count, help="of each set so many, at an even stride (default: all)")
    return parser.parse_args(argv)


def _count(value: str) -> int:
    count = int(value)
    if count < 1:
        raise ValueError(value)
    return count


def _found(bundles: Path, name: str, version: str | None) -> Bundle:
    """Raises BundleError."""
    return bundle.load(bundles / name / version) if version else bundle.discover(bundles, (name,))[name]


def _calibration(found: Bundle) -> Calibration:
    """Raises BundleError."""
    if found.calibration is None:
        raise BundleError(
            f"{found.directory} has no calibration, so there is no promise to measure; export it again, with one."
        )
    return found.calibration


def _rounded(document: Any) -> Any:
    if isinstance(document, float):
        return round(document, DECIMALS)
    if isinstance(document, dict):
        return {key: _rounded(value) for key, value in document.items()}
    return [_rounded(value) for value in document] if isinstance(document, list) else document


def _write(path: Path, content: bytes) -> None:
    write_whole(path, content, 0o644)
    print(f"wrote {path}")
