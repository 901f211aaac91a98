"""What a model card (Mitchell et al. 2019) says of the model itself, a section each, as Markdown."""

from collections.abc import Mapping
from typing import Any

from export.markdown import table
from export.subject import Subject
from export.terms import SCORES, SPLITS

# From a card in models/bundles/<name>/<version> to the pages of the repository.
DOCS = "../../../../docs"


def details(subject: Subject) -> str:
    manifest, training = subject.manifest, subject.manifest.training
    spec = manifest.input
    known = {
        "model": f"{manifest.name}, version {manifest.version}",
        "variant": f"{manifest.variant.precision}, made from `{manifest.variant.made_from}`"
        if manifest.variant
        else None,
        "classes": f"{len(manifest.labels)}: {', '.join(manifest.labels)}",
        "input": f"{spec.kind}, {spec.width} × {spec.height} pixels",
        "training": f"`{training['command']}`" if "command" in training else None,
        "seed": training.get("seed"),
        "epochs": training.get("epochs"),
        "hardware": training.get("hardware"),
        "time": f"{training['minutes']} minutes" if "minutes" in training else None,
        "trained with": _versions(training.get("versions", {})),
        "exported with": _versions(manifest.created_by),
        "calibration": f"`{subject.calibration.id}`",
        "calibrated anew": _labels(training["recalibrated"]) if "recalibrated" in training else None,
    }
    rows = [(name, str(value)) for name, value in known.items() if value not in (None, "")]
    return "## Model details\n\n" + table(("", ""), rows)


def use(subject: Subject) -> str:
    purpose = subject.purpose
    return f"""## Intended use

- Meant for: {purpose.intended}
- Not meant for: {purpose.beyond}
- Where a wrong answer may do harm, a person looks at what the model abstains from, and at samples of the rest."""


def data(subject: Subject) -> str:
    splits = subject.calibration.data
    rows = [
        (name, f"{splits[name].n:,}", f"{splits[name].n_errors:,}", why, f"`{splits[name].index_sha256}`")
        for name, why in SPLITS.items()
        if name in splits
    ]
    return f"""## Data

{subject.purpose.images} The network was trained on none of these:

""" + table(("images", "number", "wrong, by the network", "what for", "SHA-256 of their indices"), rows)


def strangeness(subject: Subject) -> str:
    ood = subject.calibration.ood
    return f"""## Out of distribution

An image whose score, {SCORES[ood.method]}, is above {ood.threshold:.4f} is
flagged as strange. The threshold lets {ood.id_tpr:.2%} of held-out ordinary images through."""


def limits(subject: Subject) -> str:
    return f"""## Limits

- All of this holds for images like those of the test set, and for no others: what corrupted images do
  to it, and how many strange ones it flags, is in [docs/shift.md]({DOCS}/shift.md).
- {subject.purpose.concern}"""


def files(subject: Subject) -> str:
    rows = [(f"`{name}`", f"{size:,}", f"`{sha256}`") for name, (size, sha256) in sorted(subject.files.items())]
    return "## Files\n\n" + table(("file", "bytes", "SHA-256"), rows)


def _labels(record: Mapping[str, Any]) -> str:
    return f"by {record['labels']:,} labels of answers of `{record['from']}`"


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{package} {number}" for package, number in versions.items())
