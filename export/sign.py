"""Sign a bundle: `python -m export sign <bundle> --key key.pem`. Offline, as OpenSSF Model Signing has it.

TRUEODDS_SIGNED_BY names the public key to those who serve it. `python -m export.sign` is the same where there is no
torch.
"""

import argparse
import sys
from pathlib import Path

from service import bundle
from service.errors import StartupError
from service.trust import SIGNATURE, UNSIGNED


class SigningError(Exception):
    """Why a bundle is not signed."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m export sign", description=__doc__)
    parser.add_argument("bundle", type=Path, help="a bundle's directory, <root>/<name>/<version>")
    parser.add_argument(
        "--key", type=Path, required=True, help="private key in PEM form, on the curve P-256, P-384 or P-521"
    )
    arguments = parser.parse_args(argv)
    try:
        print(f"wrote {sign(arguments.bundle, arguments.key)}")
    except (StartupError, SigningError) as error:
        print(f"sign: {error}", file=sys.stderr)
        return 1
    return 0


def sign(directory: Path, key: Path) -> Path:
    """Write the signature over all files of a sound bundle and return its path. Raises BundleError, SigningError."""
    try:
        from model_signing import hashing, signing
    except ImportError as error:
        raise SigningError("model-signing is missing; requirements/dev.lock has it.") from error
    bundle.load(directory)
    files = hashing.Config().set_ignored_paths(paths=sorted(UNSIGNED), ignore_git_paths=False)
    signature = directory / SIGNATURE
    try:
        config = signing.Config().use_elliptic_key_signer(private_key=key)
        config.set_hashing_config(files).sign(directory, signature)
    except OSError as error:
        raise SigningError(f"{error.filename or directory}: {error.strerror}.") from error
    except (ValueError, TypeError) as error:
        # TypeError: it is encrypted, and a password was not given.
        raise SigningError(f"{key} is no unencrypted private key in PEM form on such a curve ({error}).") from error
    return signature


if __name__ == "__main__":
    sys.exit(main())
