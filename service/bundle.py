"""A bundle: one version of one model, with all that is needed to serve it and to check that it is what it says.

<root>/<name>/<version>/
    manifest.json         what this is, and the SHA-256 of every other file
    model.onnx            the calibrated graph for ONNX Runtime
    model.torchscript.pt  the same for TorchScript
    calibration.json      how it was calibrated and how well that works; a bundle may lack it, and then says so
    MODEL_CARD.md         the same for people, with its pictures (*.svg)
    performance.json      how fast it is on which machine; measured where it runs, so the manifest does not vouch for it
    model.sig             a signature over all but performance.json, where it is signed

Its variants, whose networks compute in another precision than float32, are bundles of the same model too, and lie in
<root>/<name>-int8/<version>/ and <root>/<name>-fp16/<version>/.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from service.audit import GRAPH, complaint
from service.backends.initializers import initializers
from service.documents import VARIANT_PRECISIONS, Calibration, Document, Manifest, Precision
from service.errors import BundleError
from service.files import RESTORE, Folder, sha256
from service.seal import Seal, changed, unreadable
from service.trust import Trust

MANIFEST, CALIBRATION = "manifest.json", "calibration.json"
VERSION = re.compile(r"\d+(\.\d+){0,2}")

Kind = TypeVar("Kind", bound=Document)


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files were found whole. The network's are read later; `seal` says which bytes they must be.

    calibration is None where there is none: its answers then promise nothing, and say so.
    """

    directory: Path
    manifest: Manifest
    calibration: Calibration | None
    seal: Seal

    @property
    def sha256(self) -> str:
        """Names the served network and calibration: the digest of the ONNX graph."""
        return self.manifest.files[GRAPH]

    @property
    def coverages(self) -> tuple[float, ...]:
        """Of the prediction sets it offers, its own first."""
        return tuple(level.coverage for level in self.calibration.conformal) if self.calibration else ()


def load(directory: Path, trust: Trust = Trust(), made_anew: frozenset[str] = frozenset()) -> Bundle:  # noqa: B008
    """Read a bundle and check every file against the manifest, and this against what is trusted.

    But those files that are about to be made anew of the others. Raises BundleError, or SettingError where `trust`
    makes no sense.
    """
    try:
        folder = Folder(directory)
    except OSError as error:
        raise unreadable(directory, error) from error
    with folder:
        content = _content(folder, MANIFEST)
        manifest = _parsed(directory / MANIFEST, content, Manifest)
        # These are read whole, and hashed then.
        read = {CALIBRATION, GRAPH} if CALIBRATION in manifest.files else set()
        for name, expected in manifest.files.items():
            if name not in made_anew | read and _digest(folder, name) != expected:
                raise changed(directory / name)
        if GRAPH not in manifest.files:
            raise BundleError(f"{directory / MANIFEST} does not vouch for {GRAPH}; export the bundle again.")
        calibration = _calibration(folder, manifest) if CALIBRATION in manifest.files else None
        pin = f"{manifest.name}/{manifest.version}@sha256:{sha256(content)}"
        vouched = trust.vouches(folder, pin, manifest.files | {MANIFEST: sha256(content)})
    return Bundle(directory, manifest, calibration, Seal(manifest.files, pin, vouched))


def _calibration(folder: Folder, manifest: Manifest) -> Calibration:
    """Checked against manifest and graph; the very bytes that the manifest vouches for. Raises BundleError."""
    evidence, graph = (_vouched(folder, manifest, name) for name in (CALIBRATION, GRAPH))
    path = folder.path / CALIBRATION
    version = _schema_version(path, evidence)
    if version != (known := Calibration.model_fields["schema_version"].default):
        raise BundleError(f"{path} is of schema version {version}, not {known}; export the bundle again.")
    calibration = _parsed(path, evidence, Calibration)
    try:
        weights = initializers(graph)
    except (ValueError, IndexError) as error:
        raise BundleError(f"{folder.path / GRAPH} is not a sound ONNX file ({error}); {RESTORE}.") from error
    reason = complaint(manifest, calibration, weights)
    if reason:
        raise BundleError(f"{path} cannot be trusted: {reason}; export the bundle again.")
    return calibration


def _vouched(folder: Folder, manifest: Manifest, name: str) -> bytes:
    content = _content(folder, name)
    if sha256(content) != manifest.files.get(name):
        raise changed(folder.path / name)
    return content


def _schema_version(path: Path, content: bytes) -> object:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not valid: {error}") from error
    return document.get("schema_version") if isinstance(document, dict) else None


def discover(
    root: Path,
    names: tuple[str, ...] = (),
    trust: Trust = Trust(),  # noqa: B008
    precision: Precision = "float32",
) -> dict[str, Bundle]:
    """The newest version of each model under root, or of the named ones only, in this precision.

    Raises BundleError, SettingError.
    """
    found = newest(root, names, precision)
    trust.check_used(found)
    return {name: load_in_place(directory, trust) for name, directory in found.items()}


def newest(root: Path, names: tuple[str, ...] = (), precision: Precision = "float32") -> dict[str, Path]:
    """Where the newest version of each model lies, or of the named ones only, in this precision. Raises BundleError."""
    folders = [path for path in sorted(root.iterdir()) if path.is_dir()] if root.is_dir() else []
    found = {_model_and_precision(path.name): path for path in folders if not path.name.startswith(".")}
    wanted = names or tuple(dict.fromkeys(name for name, _ in found))
    missing = [name for name in wanted if (name, precision) not in found]
    if missing and precision != "float32":
        raise BundleError(
            f"There is no {precision} variant of {', '.join(missing)} under {root}; make one (python -m export "
            f"variant {precision} NAME), or name the models that have one in TRUEODDS_MODELS."
        )
    if not wanted or missing:
        raise BundleError(
            f"There is no bundle of {', '.join(missing) or 'any model'} under {root}; see python -m export."
        )
    return {name: _newest(found[name, precision]) for name in wanted}


def folder_name(name: str, precision: Precision) -> str:
    """Of a model's bundles in a precision, below the root."""
    return name if precision == "float32" else f"{name}-{precision}"


def _model_and_precision(folder: str) -> tuple[str, Precision]:
    """Of which model, and in which precision, the bundles in a folder are."""
    precision = next((precision for precision in VARIANT_PRECISIONS if folder.endswith(f"-{precision}")), None)
    return (folder.removesuffix(f"-{precision}"), precision) if precision else (folder, "float32")


def load_in_place(
    directory: Path,
    trust: Trust = Trust(),  # noqa: B008
    made_anew: frozenset[str] = frozenset(),
) -> Bundle:
    """As `load`, a bundle that lies where its manifest says, so that the name and version asked for are those answered
    with.
    """
    bundle = load(directory, trust, made_anew)
    folder, version = folder_name(bundle.manifest.name, bundle.manifest.precision), bundle.manifest.version
    if (folder, version) != (directory.parent.name, directory.name):
        raise BundleError(f"{directory} holds {folder}/{version}; move the bundle there or export it again.")
    return bundle


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with Folder(path.parent) as folder:
        return folder.digest(path.name)


def _newest(directory: Path) -> Path:
    versions = [path for path in directory.iterdir() if VERSION.fullmatch(path.name)]
    if not versions:
        raise BundleError(f"{directory} holds no version (a folder named like 1 or 1.2); see python -m export.")
    return max(versions, key=lambda path: tuple(int(part) for part in path.name.split(".")))


def _content(folder: Folder, name: str) -> bytes:
    try:
        return folder.read(name)
    except OSError as error:
        raise unreadable(folder.path / name, error) from error


def _digest(folder: Folder, name: str) -> str:
    try:
        return folder.digest(name)
    except OSError as error:
        raise unreadable(folder.path / name, error) from error


def _parsed(path: Path, content: bytes, kind: type[Kind]) -> Kind:
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        raise BundleError(f"{path} is not valid: {error}") from error
