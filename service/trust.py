"""Which bundles the operator vouches for: those pinned by the digest of their manifest, and those signed by a key.

The manifest holds the digest of every file that is served, so whoever vouches for it vouches for all.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from service.errors import BundleError, SettingError
from service.files import Folder
from service.seal import unreadable

SIGNATURE = "model.sig"
# Measured where the bundle is served, and read for speed only.
UNSIGNED = frozenset({SIGNATURE, "performance.json"})


@dataclass(frozen=True)
class Trust:
    """`pins` are `name/version@sha256:digest`; `signed_by` is a public key. A model that is pinned must be as pinned;
    where there is a key, every bundle must be signed. With neither, any bundle is served, but none that carries code.
    """

    pins: tuple[str, ...] = ()
    signed_by: Path | None = None

    def vouches(self, folder: Folder, pin: str, digests: Mapping[str, str]) -> bool:
        """Whether for this bundle; `digests` are those found, the manifest's among them.

        Raises BundleError where it is not what was pinned or signed, SettingError where nothing can be verified.
        """
        pinned = self._pinned(folder.path, pin)
        if self.signed_by is None:
            return pinned
        self._check_signed(folder, digests, self.signed_by)
        return True

    def check_used(self, names: Iterable[str]) -> None:
        """Raises SettingError for a pin of none of these models: misspelt, it would protect nothing."""
        idle = [pin for pin in self.pins if _model(pin) not in set(names)]
        if idle:
            raise SettingError(f"TRUEODDS_PINNED names {', '.join(idle)}, which is not served; correct or remove it.")

    def _pinned(self, directory: Path, pin: str) -> bool:
        if pin not in self.pins and _model(pin) in map(_model, self.pins):
            raise BundleError(
                f"{directory} is {pin}, which TRUEODDS_PINNED does not name; restore it, or pin it if you trust it."
            )
        return pin in self.pins

    def _check_signed(self, folder: Folder, digests: Mapping[str, str], key: Path) -> None:
        from service.signature import SignatureError, signed_digests

        path = folder.path / SIGNATURE
        try:
            signed = signed_digests(folder.read(SIGNATURE), key)
        except FileNotFoundError as error:
            raise BundleError(
                f"{folder.path} is not signed ({SIGNATURE} is missing), and TRUEODDS_SIGNED_BY asks for it; sign it "
                f"with python -m export sign {folder.path} --key KEY."
            ) from error
        except OSError as error:
            raise unreadable(path, error) from error
        except SignatureError as error:
            raise BundleError(f"{path} is not a valid signature: {error}; have the bundle signed again.") from error
        # A hidden file is nobody's: one that is being written.
        present = {name for name in folder.names() if not name.startswith(".")} - UNSIGNED
        for name in sorted(present | signed.keys()):
            if name not in signed:
                raise BundleError(f"{folder.path / name} is not signed; remove it or have the bundle signed again.")
            if _found(folder, name, digests) != signed[name]:
                raise BundleError(f"{folder.path / name} is not the file that was signed; restore the bundle.")


def _found(folder: Folder, name: str, digests: Mapping[str, str]) -> str:
    # A name out of the folder was never in it.
    if Path(name).name != name:
        raise BundleError(f"{folder.path / SIGNATURE} is of a file that is not in the bundle; restore the bundle.")
    try:
        return digests.get(name) or folder.digest(name)
    except OSError as error:
        raise unreadable(folder.path / name, error) from error


def _model(pin: str) -> str:
    return pin.partition("/")[0]
