"""Model cards: `python -m export cards [<model> …]` writes those of the newest bundles anew, with their pictures.

All comes from manifest.json and calibration.json. What is the same already is not touched; where something changes, the
manifest vouches for it at last, so that an interrupted run is made good by another.
`python -m export.cards` is the same where there is no torch.
"""

import argparse
import json
import stat
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from export import findings, sections
from export.pictures import PICTURES
from export.subject import Subject
from service import bundle
from service.bundle import MANIFEST
from service.documents import Calibration, Manifest
from service.errors import BundleError, StartupError
from service.files import Folder, sha256, write_whole
from service.settings import BUNDLES
from service.trust import SIGNATURE

CARD = "MODEL_CARD.md"
# In the order of Mitchell et al. 2019, the evidence where they have quantitative analyses.
SECTIONS: tuple[Callable[[Subject], str], ...] = (
    sections.details,
    sections.use,
    sections.data,
    findings.metrics,
    findings.targets,
    findings.reliability,
    findings.choice,
    findings.classes,
    findings.prediction_sets,
    findings.abstention,
    sections.strangeness,
    sections.limits,
    sections.files,
)
# What is made of the rest of a bundle, whatever is found in its place.
MADE = frozenset({CARD, *PICTURES})


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m export cards", description=__doc__)
    parser.add_argument("models", nargs="*", metavar="model", help="default: all")
    parser.add_argument("--bundles", type=Path, default=BUNDLES, help="where bundles are kept (default: %(default)s)")
    arguments = parser.parse_args(argv)
    try:
        found = bundle.newest(arguments.bundles, tuple(arguments.models))
    except BundleError as error:
        print(f"cards: {error}", file=sys.stderr)
        return 1
    told = [_told(directory) for directory in found.values()]
    return int(not all(told))


def _told(directory: Path) -> bool:
    """Whether the card of this bundle could be made; says what was done. One that cannot does not hold up the next."""
    try:
        written = remake(directory)
    except (StartupError, OSError) as error:
        print(f"cards: {error}", file=sys.stderr)
        return False
    print(f"{directory}: wrote {', '.join(written)}" if written else f"{directory}: nothing to change")
    if written and (directory / SIGNATURE).exists():
        print(f"{directory} was signed as it was; sign it again: python -m export sign {directory} --key KEY")
    return True


def remake(directory: Path) -> list[str]:
    """Write the card and pictures of a bundle where they are not what they should be; the files written, in order.

    Everything else must be what the manifest says. Raises BundleError, OSError.
    """
    found = bundle.load_in_place(directory, made_anew=MADE)
    if found.calibration is None:
        raise BundleError(f"{directory} has no calibration, of which a card could tell; export the bundle again.")
    made = made_of(directory, found.manifest, found.calibration)
    with Folder(directory) as folder:
        changed = {name: content for name, content in made.items() if _present(folder, name) != content}
        manifest = _vouching(folder.read(MANIFEST), made)
    if manifest:
        # It vouches for every other file, so it is written last.
        changed[MANIFEST] = manifest
    mode = stat.S_IMODE((directory / MANIFEST).stat().st_mode)
    for name, content in changed.items():
        write_whole(directory / name, content, mode)
    bundle.load(directory)
    return list(changed)


def made_of(directory: Path, manifest: Manifest, calibration: Calibration) -> dict[str, bytes]:
    """The pictures and, last, the card of a bundle, by file; `directory` holds what else the manifest names."""
    made = {name: draw(calibration) for name, draw in PICTURES.items()}
    files = {name: (len(content), sha256(content)) for name, content in made.items()}
    for name, digest in manifest.files.items():
        if name not in MADE:
            files[name] = ((directory / name).stat().st_size, digest)
    made[CARD] = card(Subject(manifest, calibration, files)).encode()
    return made


def card(subject: Subject) -> str:
    """MODEL_CARD.md."""
    manifest = subject.manifest
    head = f"""# {manifest.name}, version {manifest.version}

How far the probabilities of this model can be believed, and where not. `make cards` writes this page from the bundle's
manifest.json and calibration.json; whoever edits it by hand makes the bundle unfit to be served."""
    return "\n\n".join([head, findings.summary(subject), *(section(subject) for section in SECTIONS)]) + "\n"


def digests(files: Mapping[str, str], made: Mapping[str, bytes]) -> dict[str, str]:
    """The files of a manifest, with those that were made, by name."""
    return dict(sorted({**files, **{name: sha256(content) for name, content in made.items()}}.items()))


def _vouching(manifest: bytes, made: Mapping[str, bytes]) -> bytes | None:
    """The manifest with these digests, and nothing else changed; None where it has them."""
    document = json.loads(manifest)
    renewed = digests(document["files"], made)
    if renewed == document["files"]:
        return None
    return (json.dumps(document | {"files": renewed}, indent=1, ensure_ascii=False) + "\n").encode()


def _present(folder: Folder, name: str) -> bytes | None:
    """None where there is no such file, or none that may be read: it is replaced."""
    try:
        return folder.read(name)
    except OSError:
        return None


if __name__ == "__main__":
    sys.exit(main())
