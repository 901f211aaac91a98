"""Compare all networks: `python -m export zoo` writes the table between two markers of README.md.

Parameters and multiply-accumulates are counted, accuracy and minutes come from the records of models.train. What must
be measured is measured once, when there are new weights or a new bundle, and kept in docs/zoo/<network>.json.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from export.markdown import PageError, placed
from export.zoo.figures import Figures, current, measured
from export.zoo.page import Entry, text
from models import MODELS, weights_path
from models.formats import DataError
from models.records import runs
from models.summary import macs, parameters
from service.errors import StartupError
from service.files import write_whole
from service.settings import BUNDLES

README, DOCS = Path("README.md"), Path("docs/zoo")
BEGIN, END = "<!-- zoo: written by make zoo -->", "<!-- zoo: end -->"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m export zoo", description=__doc__)
    parser.add_argument("--readme", type=Path, default=README, help=f"where the table belongs (default: {README})")
    parser.add_argument("--docs", type=Path, default=DOCS, help=f"where figures are kept (default: {DOCS})")
    parser.add_argument("--bundles", type=Path, default=BUNDLES, help=f"where bundles are kept (default: {BUNDLES})")
    arguments = parser.parse_args(argv)
    try:
        # Minutes are not spent before it is known where the table goes.
        placed(arguments.readme.read_text(), "the zoo", BEGIN, END, "")
        for name in MODELS:
            if weights_path(name).exists():
                renew(name, arguments.docs, arguments.bundles)
        page = placed(arguments.readme.read_text(), "the zoo", BEGIN, END, text(entries(arguments.docs)))
        write_whole(arguments.readme, page.encode(), 0o644)
    except (StartupError, DataError, PageError, ValueError, OSError) as error:
        print(f"zoo: {error}", file=sys.stderr)
        return 1
    print(f"wrote {arguments.readme}")
    return 0


def entries(docs: Path) -> list[Entry]:
    """Every network, by data set and cost; without what was not measured yet. Raises DataError."""
    found = [_entry(name, docs) for name in MODELS]
    return sorted(found, key=lambda entry: (entry.dataset, entry.macs))


def renew(name: str, docs: Path, bundles: Path) -> bool:
    """Measure a network, unless its figures are there already; whether it was. Raises what `measured` does."""
    path = docs / f"{name}.json"
    if path.exists() and _figures(path).sha256 == current(name, bundles):
        return False
    print(f"measuring {name}")
    figures = measured(name, bundles)
    docs.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(asdict(figures), indent=1) + "\n").encode(), 0o644)
    print(f"wrote {path}")
    return True


def _entry(name: str, docs: Path) -> Entry:
    net, recipe, path = MODELS[name].build(), MODELS[name], docs / f"{name}.json"
    return Entry(
        name,
        recipe.source,
        recipe.dataset,
        parameters(net),
        macs(net),
        tuple(runs(name)) if weights_path(name).exists() else (),
        _figures(path) if path.exists() else None,
    )


def _figures(path: Path) -> Figures:
    """Raises DataError."""
    try:
        return Figures.of(json.loads(path.read_text()))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} has no figures ({error!r}); delete it to have them measured again") from error
