"""A bundle: one version of one model, with all that is needed to serve it and to check that it is what it says.

<root>/<name>/<version>/
    manifest.json         what this is, and the SHA-256 of every other file
    model.onnx            the calibrated graph for ONNX Runtime
    model.torchscript.pt  the same for TorchScript
    calibration.json      how it was calibrated and how well that works
    MODEL_CARD.md         the same for people
    performance.json      how fast it is on which machine; measured where it runs, so the manifest does not vouch for it
    model.sig             a signature over all but performance.json, where it is signed
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from service.calibration import softmax
from service.errors import BundleError
from service.files import Folder, sha256
from service.images import InputSpec
from service.seal import Seal, changed, unreadable
from service.trust import Trust

MANIFEST, CALIBRATION = "manifest.json", "calibration.json"
VERSION = re.compile(r"\d+(\.\d+){0,2}")

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Share = Annotated[float, Field(ge=0, le=1)]
Labels = Annotated[list[str], Field(min_length=1)]
# A file of the bundle's own directory, never a way out of it.
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Document = TypeVar("Document", bound=_Document)


class Figures(_Document):
    """Measured on n images: accuracy and errors in [0, 1], NLL in nats."""

    n: int
    accuracy: Share
    nll: float
    brier: float
    ece_15: Share


class NullFigures(_Document):
    """The ECE of a perfectly calibrated model with the same confidences."""

    ece_15_mean: Share
    ece_15_p95: Share
    ece_15_p99: Share


class SplitRecord(_Document):
    """A split by the digest of its indices; n_errors counts the images the network gets wrong."""

    n: int
    n_errors: int
    index_sha256: Sha256


class Conformal(_Document):
    """Split conformal prediction: labels of at least `threshold` probability cover the truth in 1 − alpha of cases."""

    alpha: Annotated[float, Field(gt=0, lt=1)]
    threshold: float
    n: int


class Ood(_Document):
    """An image whose energy is above `threshold` is flagged; `id_tpr` of held-out images are not."""

    method: Literal["energy"]
    threshold: float
    id_tpr: Share


class Parameters(_Document):
    temperature: Annotated[float, Field(ge=0.05, le=20)]


class CalibrationInput(_Document):
    kind: Literal["logits"]
    preprocessing_sha256: Sha256


class TestVector(_Document):
    """Raw logits and the calibrated probabilities every runtime must make of them."""

    logits: list[float]
    probabilities: list[float]


class Metrics(_Document):
    before: Figures
    after: Figures
    null: NullFigures


class Calibration(_Document):
    """calibration.json. `id` is the SHA-256 of everything else in it, so no two calibrations share one."""

    schema_version: Literal[1]
    id: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    model_sha256: Sha256
    labels: Labels
    input: CalibrationInput
    method: Literal["map_temperature"]
    params: Parameters
    data: dict[Literal["fit", "conformal", "eval"], SplitRecord]
    metrics: Metrics
    conformal: list[Conformal]
    ood: Ood
    created_by: dict[str, str]
    test_vectors: list[TestVector]


class Manifest(_Document):
    """manifest.json."""

    schema_version: Literal[1]
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    version: str
    labels: Labels
    input: InputSpec
    files: dict[FileName, Sha256]
    training: dict[str, Any]
    created_by: dict[str, str]


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files were found whole. The network's are read later; `seal` says which bytes they must be."""

    directory: Path
    manifest: Manifest
    calibration: Calibration
    seal: Seal

    @property
    def sha256(self) -> str:
        """Names the served network and calibration: the digest of the ONNX graph."""
        return self.calibration.model_sha256


def load(directory: Path, trust: Trust = Trust()) -> Bundle:  # noqa: B008  it is frozen
    """Read a bundle and check every file against the manifest, and this against what is trusted.

    Raises BundleError, or SettingError where `trust` makes no sense.
    """
    try:
        folder = Folder(directory)
    except OSError as error:
        raise unreadable(directory, error) from error
    with folder:
        content = _content(folder, MANIFEST)
        manifest = _parsed(directory / MANIFEST, content, Manifest)
        for name, expected in manifest.files.items():
            if _digest(folder, name) != expected:
                raise changed(directory / name)
        if CALIBRATION not in manifest.files:
            raise BundleError(f"{directory / MANIFEST} does not vouch for {CALIBRATION}; export the bundle again.")
        evidence = _content(folder, CALIBRATION)
        if sha256(evidence) != manifest.files[CALIBRATION]:
            raise changed(directory / CALIBRATION)
        calibration = _parsed(directory / CALIBRATION, evidence, Calibration)
        _check(directory, manifest, calibration)
        pin = f"{manifest.name}/{manifest.version}@sha256:{sha256(content)}"
        vouched = trust.vouches(folder, pin, manifest.files | {MANIFEST: sha256(content)})
    return Bundle(directory, manifest, calibration, Seal(manifest.files, pin, vouched))


def discover(root: Path, names: tuple[str, ...] = (), trust: Trust = Trust()) -> dict[str, Bundle]:  # noqa: B008
    """The newest version of each model under root, or of the named ones only. Raises BundleError, SettingError."""
    folders = [path for path in sorted(root.iterdir()) if path.is_dir()] if root.is_dir() else []
    found = {path.name: path for path in folders if not path.name.startswith(".")}
    missing = [name for name in names if name not in found]
    if not found or missing:
        raise BundleError(
            f"There is no bundle of {', '.join(missing) or 'any model'} under {root}; see python -m export."
        )
    trust.check_used(names or found)
    return {name: _load_in_place(_newest(found[name]), trust) for name in names or found}


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with Folder(path.parent) as folder:
        return folder.digest(path.name)


def canonical_digest(document: Any) -> str:
    """SHA-256 of a JSON document, whatever its layout."""
    return sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode())


def calibration_id(document: dict[str, Any]) -> str:
    """The id of a calibration document, computed from everything in it but the id."""
    return "sha256:" + canonical_digest({key: value for key, value in document.items() if key != "id"})


def preprocessing_digest(spec: InputSpec) -> str:
    """Names the way from picture to pixels that a calibration was fitted behind."""
    return canonical_digest(TypeAdapter(InputSpec).dump_python(spec, mode="json"))


def _load_in_place(directory: Path, trust: Trust) -> Bundle:
    """A bundle that lies where its manifest says, so that the name and version asked for are those answered with."""
    bundle = load(directory, trust)
    name, version = bundle.manifest.name, bundle.manifest.version
    if (name, version) != (directory.parent.name, directory.name):
        raise BundleError(f"{directory} holds {name}/{version}; move the bundle there or export it again.")
    return bundle


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


def _parsed(path: Path, content: bytes, kind: type[Document]) -> Document:
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        raise BundleError(f"{path} is not valid: {error}") from error


def _check(directory: Path, manifest: Manifest, calibration: Calibration) -> None:
    document = calibration.model_dump(mode="json")
    claims = {
        "the id does not match the content": calibration.id == calibration_id(document),
        "it belongs to another model.onnx": manifest.files.get("model.onnx") == calibration.model_sha256,
        "its labels are not the manifest's": manifest.labels == calibration.labels,
        "it was fitted behind other preprocessing": calibration.input.preprocessing_sha256
        == preprocessing_digest(manifest.input),
        "it names no prediction-set threshold": bool(calibration.conformal),
        "it has too few images for a coverage it names": all(
            np.ceil((found.n + 1) * (1 - found.alpha)) <= found.n for found in calibration.conformal
        ),
        "it does not tell its splits apart": len({split.index_sha256 for split in calibration.data.values()}) == 3,
        "its test vectors are not what its temperature makes of them": _vectors_hold(calibration),
    }
    for complaint, holds in claims.items():
        if not holds:
            raise BundleError(f"{directory / CALIBRATION} cannot be trusted: {complaint}; export the bundle again.")


def _vectors_hold(calibration: Calibration) -> bool:
    """Whether there are test vectors, and softmax(logits / T) gives their probabilities to 1e-5."""
    vectors, width = calibration.test_vectors, len(calibration.labels)
    if not vectors or any({len(vector.logits), len(vector.probabilities)} != {width} for vector in vectors):
        return False
    logits = np.array([vector.logits for vector in vectors])
    expected = np.array([vector.probabilities for vector in vectors])
    return np.allclose(softmax(logits / calibration.params.temperature), expected, rtol=0, atol=1e-5)
