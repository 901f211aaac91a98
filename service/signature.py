"""Signatures of bundles as OpenSSF Model Signing has them, verified with a public key, offline.

model.sig is a Sigstore bundle (v0.3) around a DSSE envelope around an in-toto statement, which lists the SHA-256 of
each file. `model-signing` writes it, and is not used to read it: its import takes each worker 54 MiB and 1.2 to 2.4 s,
with clients of the network in it, against 13 MiB and 0.03 to 0.11 s for `cryptography` alone (two busy cores of an AMD
EPYC, CPython 3.11, model-signing 1.1.1, n = 5); and it opens the files itself, not those bytes that are served.
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Base64Bytes, BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from service.errors import SettingError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

PAYLOAD_TYPE = "application/vnd.in-toto+json"
# The hash that goes with each curve: those that model-signing knows.
CURVES = {"secp256r1": "SHA256", "secp384r1": "SHA384", "secp521r1": "SHA512"}


class SignatureError(Exception):
    """Why a signature is not valid."""


class _Part(BaseModel):
    # What else there is belongs to newer versions, and is signed or without meaning.
    model_config = ConfigDict(frozen=True, alias_generator=to_camel)


class _Key(_Part):
    hint: str = ""


class _Material(_Part):
    public_key: _Key


class _Signed(_Part):
    sig: Base64Bytes


class _Envelope(_Part):
    payload: Base64Bytes
    payload_type: Literal["application/vnd.in-toto+json"]
    signatures: Annotated[list[_Signed], Field(min_length=1, max_length=1)]


class _SigstoreBundle(_Part):
    media_type: Literal["application/vnd.dev.sigstore.bundle.v0.3+json"]
    verification_material: _Material
    dsse_envelope: _Envelope


class _Serialization(BaseModel):
    method: Literal["files"]
    hash_type: Literal["sha256"]


class _Resource(BaseModel):
    name: str
    algorithm: Literal["sha256"]
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Predicate(BaseModel):
    serialization: _Serialization
    resources: list[_Resource]


class _Statement(BaseModel):
    kind: Annotated[Literal["https://in-toto.io/Statement/v1"], Field(alias="_type")]
    predicate_type: Annotated[Literal["https://model_signing/signature/v1.0"], Field(alias="predicateType")]
    predicate: _Predicate


def signed_digests(content: bytes, key: Path) -> dict[str, str]:
    """The SHA-256 of each file that the owner of `key` signed. Raises SignatureError, SettingError for the key."""
    public = _public_key(key)
    try:
        bundle = _SigstoreBundle.model_validate_json(content)
        _verify(bundle, public)
        statement = _Statement.model_validate_json(bundle.dsse_envelope.payload)
    except ValidationError as error:
        raise SignatureError(f"it has not the form of one ({error.error_count()} errors)") from error
    resources = statement.predicate.resources
    digests = {resource.name: resource.digest for resource in resources}
    if len(digests) != len(resources):
        raise SignatureError("it names a file twice")
    return digests


def _public_key(path: Path) -> "EllipticCurvePublicKey":
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ImportError as error:
        raise SettingError(
            "TRUEODDS_SIGNED_BY needs a package more: pip install --require-hashes -r requirements/signing.lock."
        ) from error
    try:
        key = load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise SettingError(f"TRUEODDS_SIGNED_BY={path} cannot be read ({error.strerror}).") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SettingError(f"TRUEODDS_SIGNED_BY={path} is no public key in PEM form.") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in CURVES:
        raise SettingError(f"TRUEODDS_SIGNED_BY={path} is no key on one of the curves {', '.join(CURVES)}.")
    return key


def _verify(bundle: _SigstoreBundle, key: "EllipticCurvePublicKey") -> None:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    envelope = bundle.dsse_envelope
    algorithm: hashes.HashAlgorithm = getattr(hashes, CURVES[key.curve.name])()
    try:
        key.verify(envelope.signatures[0].sig, _authenticated(envelope.payload), ec.ECDSA(algorithm))
    except InvalidSignature as error:
        pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        hint = bundle.verification_material.public_key.hint
        other = hint not in ("", hashlib.sha256(pem).hexdigest())
        raise SignatureError("it was made with another key" if other else "what it signs was changed") from error


def _authenticated(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding (https://github.com/secure-systems-lab/dsse, protocol.md)."""
    return b"DSSEv1 %d %b %d %b" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)
