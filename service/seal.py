"""What the files of a bundle must be, and whether somebody the operator trusts says so."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from service.errors import BundleError
from service.files import RESTORE, Folder, UnsafeFileError, sha256


@dataclass(frozen=True)
class Seal:
    """`digests`: SHA-256 by file. `pin` names the bundle's manifest, as TRUEODDS_PINNED does.

    `vouched`: the bundle is pinned or signed. What is not is undamaged as far as it says itself.
    """

    digests: Mapping[str, str]
    pin: str
    vouched: bool


@dataclass(frozen=True)
class ModelFile:
    """A network's file: where it lies, and the SHA-256 of the only bytes that are taken for it."""

    path: Path
    sha256: str

    def read(self) -> bytes:
        """The bytes, and those very bytes checked. Raises BundleError."""
        try:
            with Folder(self.path.parent) as folder:
                content = folder.read(self.path.name)
        except OSError as error:
            raise unreadable(self.path, error) from error
        if sha256(content) != self.sha256:
            raise changed(self.path)
        return content


def model_file(directory: Path, name: str, seal: Seal | None) -> ModelFile:
    """The sealed file of this name; without a seal, as it is found: that of a bundle in the making.

    Raises BundleError.
    """
    path = directory / name
    try:
        if seal is not None:
            return ModelFile(path, seal.digests[name])
        with Folder(directory) as folder:
            return ModelFile(path, folder.digest(name))
    except KeyError:
        raise unreadable(path, FileNotFoundError()) from None
    except OSError as error:
        raise unreadable(path, error) from error


def check_vouched(seals: Iterable[Seal]) -> None:
    """Before a form of the network is loaded that can carry code. Raises BundleError."""
    pins = [seal.pin for seal in seals if not seal.vouched]
    if pins:
        raise BundleError(
            f"TorchScript can carry code, and nobody vouches for {', '.join(pins)}. If you trust it, add to "
            f"TRUEODDS_PINNED: {','.join(pins)}; or set TRUEODDS_SIGNED_BY to the public key of who signed it; or "
            "TRUEODDS_BACKEND=onnx."
        )


def unreadable(path: Path, error: OSError) -> BundleError:
    if isinstance(error, UnsafeFileError):
        return BundleError(f"{path} {error}.")
    if isinstance(error, FileNotFoundError):
        return BundleError(f"{path} is missing; {RESTORE}.")
    return BundleError(f"{path} cannot be read ({error.strerror}); {RESTORE}.")


def changed(path: Path) -> BundleError:
    return BundleError(f"{path} is not the file its manifest describes; {RESTORE}.")
