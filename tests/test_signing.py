"""Pinned and signed bundles: what the operator vouches for is served, what merely claims to be is not."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_signing import hashing, signing, verifying

from export.sign import main as sign
from service import bundle, registry
from service.board import Board
from service.errors import BundleError, SettingError, StartupError
from service.launch import check
from service.settings import BUNDLES, Settings
from service.signature import SignatureError, signed_digests
from service.trust import SIGNATURE, Trust
from tests.conftest import ROOT, committed, environment, free_port
from tests.test_bundle import write_bundle

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
SIGNED_FILES = ["MODEL_CARD.md", "calibration.json", "manifest.json", "model.onnx", "model.torchscript.pt"]


def write_keys(folder: Path, private: PrivateKey) -> tuple[Path, Path]:
    """Private and public, as `openssl` writes them."""
    folder.mkdir(exist_ok=True)
    key, public = folder / "key.pem", folder / "public.pem"
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return key, public


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_keys(tmp_path_factory.mktemp("keys"), ec.generate_private_key(ec.SECP256R1()))


@pytest.fixture(scope="module")
def public(keys: tuple[Path, Path]) -> Path:
    return keys[1]


def signed_bundle(root: Path, key: Path) -> Path:
    directory = write_bundle(root)
    assert sign([str(directory), "--key", str(key)]) == 0
    return directory


@pytest.fixture
def signed(tmp_path: Path, keys: tuple[Path, Path]) -> Path:
    return signed_bundle(tmp_path, keys[0])


def refused(directory: Path, trust: Trust, reason: str) -> None:
    with pytest.raises(BundleError, match=reason) as refusal:
        bundle.load(directory, trust)
    assert str(directory) in str(refusal.value)


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_a_signed_bundle_loads_and_is_vouched_for(tmp_path: Path, curve: ec.EllipticCurve) -> None:
    """Signed by the command, verified by its public key; `model-signing` itself agrees."""
    key, public = write_keys(tmp_path / "keys", ec.generate_private_key(curve))
    directory = signed_bundle(tmp_path, key)
    assert bundle.load(directory, Trust(signed_by=public)).seal.vouched
    verifying.Config().use_elliptic_key_verifier(public_key=public).verify(directory, directory / SIGNATURE)


def test_a_signature_by_the_library_alone_is_understood(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    """Whoever signs with `model-signing`'s own defaults makes a signature that is verified here."""
    directory = write_bundle(tmp_path)
    config = signing.Config().use_elliptic_key_signer(private_key=keys[0])
    config.set_hashing_config(hashing.Config()).sign(directory, directory / SIGNATURE)
    assert sorted(signed_digests((directory / SIGNATURE).read_bytes(), keys[1])) == SIGNED_FILES
    assert bundle.load(directory, Trust(signed_by=keys[1])).seal.vouched


def test_nothing_is_verified_unasked(signed: Path) -> None:
    """Without the setting a signature is a file like others, whole or not; and vouches for nothing."""
    assert not bundle.load(signed).seal.vouched
    (signed / SIGNATURE).write_text("no signature")
    assert not bundle.load(signed).seal.vouched


def test_a_missing_signature_is_named_with_the_remedy(tmp_path: Path, public: Path) -> None:
    """With the command that makes one."""
    refused(write_bundle(tmp_path), Trust(signed_by=public), r"is not signed.*python -m export sign .* --key")


def test_another_key_is_told_apart(signed: Path, tmp_path: Path) -> None:
    """Of the same curve or of another."""
    for curve in (ec.SECP256R1(), ec.SECP384R1()):
        _, other = write_keys(tmp_path / curve.name, ec.generate_private_key(curve))
        refused(signed, Trust(signed_by=other), r"model\.sig is not a valid signature: it was made with another key")


@pytest.mark.parametrize("file", SIGNED_FILES)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_changed_bit_of_any_file_is_noticed(signed: Path, public: Path, file: str, where: float, bit: int) -> None:
    """Even of the manifest, which nothing else vouches for."""
    content = (signed / file).read_bytes()
    changed = bytearray(content)
    changed[int(where * len(content))] ^= 1 << bit
    (signed / file).write_bytes(changed)
    with pytest.raises(BundleError):
        bundle.load(signed, Trust(signed_by=public))
    (signed / file).write_bytes(content)


def test_a_forged_bundle_is_refused(signed: Path, public: Path) -> None:
    """One who can compute digests can make a bundle that is whole, but not sign it."""
    forged = write_bundle(signed.parent.parent / "forged", labels=["dog", "cat", "owl"])
    shutil.copy(signed / SIGNATURE, forged)
    bundle.load(forged)
    refused(forged, Trust(signed_by=public), "is not the file that was signed")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_no_changed_signature_says_anything_else(signature: bytes, public: Path, where: float, byte: int) -> None:
    """Whatever byte is changed: it is refused, or says what it said."""
    position = int(where * len(signature))
    changed = signature[:position] + bytes([byte]) + signature[position + 1 :]
    with suppress(SignatureError):
        assert signed_digests(changed, public) == signed_digests(signature, public)


@pytest.mark.slow
@given(
    content=st.binary(max_size=300)
    | st.recursive(
        st.none() | st.booleans() | st.text(max_size=5),
        lambda inner: (
            st.dictionaries(
                st.sampled_from(
                    ["mediaType", "dsseEnvelope", "payload", "signatures", "verificationMaterial", "publicKey", "x"]
                ),
                inner,
            )
            | st.lists(inner, max_size=3)
        ),
    ).map(lambda document: json.dumps(document).encode())
)
def test_nonsense_is_no_signature(content: bytes, public: Path) -> None:
    """Any bytes and any JSON are refused in one way."""
    with pytest.raises(SignatureError):
        signed_digests(content, public)


@pytest.fixture(scope="module")
def signature(tmp_path_factory: pytest.TempPathFactory, keys: tuple[Path, Path]) -> bytes:
    return (signed_bundle(tmp_path_factory.mktemp("signature"), keys[0]) / SIGNATURE).read_bytes()


def test_all_files_must_be_signed(signed: Path, keys: tuple[Path, Path]) -> None:
    """A signature over fewer, a further file, and one that is gone are named."""
    trust = Trust(signed_by=keys[1])
    (signed / "notes.txt").write_text("ours")
    refused(signed, trust, r"notes\.txt is not signed")
    (signed / "notes.txt").unlink()
    but_one = hashing.Config().set_ignored_paths(paths=["model.onnx", SIGNATURE])
    config = signing.Config().use_elliptic_key_signer(private_key=keys[0])
    config.set_hashing_config(but_one).sign(signed, signed / SIGNATURE)
    refused(signed, trust, r"model\.onnx is not signed")
    (signed / "notes.txt").write_text("ours")
    assert sign([str(signed), "--key", str(keys[0])]) == 0
    bundle.load(signed, trust)
    (signed / "notes.txt").write_text("theirs")
    refused(signed, trust, r"notes\.txt is not the file that was signed")
    (signed / "notes.txt").unlink()
    refused(signed, trust, r"notes\.txt is missing")


def test_what_is_measured_later_needs_no_signature(signed: Path, public: Path) -> None:
    """performance.json is written where the bundle is served, by way of a hidden file."""
    (signed / "performance.json").write_text("{}")
    (signed / ".performance.json-x").write_text("{")
    assert bundle.load(signed, Trust(signed_by=public)).seal.vouched


def test_a_signature_that_is_a_link_is_refused(signed: Path, public: Path) -> None:
    """It is read as carefully as all else."""
    (signed / SIGNATURE).rename(signed.parent / SIGNATURE)
    (signed / SIGNATURE).symlink_to(signed.parent / SIGNATURE)
    refused(signed, Trust(signed_by=public), "is a symbolic link")


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path: None, "cannot be read"),
        (lambda path: path.write_text("no key"), "no public key in PEM form"),
        (lambda path: write_keys(path.parent, rsa.generate_private_key(65537, 2048)), "no key on one of the curves"),
        (lambda path: write_keys(path.parent, ec.generate_private_key(ec.SECP256K1())), "no key on one of the curves"),
    ],
    ids=["missing", "text", "RSA", "another curve"],
)
def test_a_key_that_makes_no_sense_is_named(
    signed: Path, tmp_path: Path, write: Callable[[Path], object], reason: str
) -> None:
    """With the setting's name."""
    path = tmp_path / "odd" / "public.pem"
    path.parent.mkdir()
    write(path)
    with pytest.raises(SettingError, match=f"TRUEODDS_SIGNED_BY={path} .*{reason}"):
        bundle.load(signed, Trust(signed_by=path))


def test_without_the_package_the_remedy_is_named(signed: Path, public: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And only where the setting asks for it."""
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    bundle.load(signed)
    with pytest.raises(SettingError, match=r"pip install --require-hashes -r requirements/signing\.lock"):
        bundle.load(signed, Trust(signed_by=public))


def test_the_service_imports_no_cryptography_unasked() -> None:
    """Nor, ever, the library that signs."""
    code = (
        "import sys; from service import bundle, registry; from service.settings import BUNDLES;"
        "bundle.discover(BUNDLES); sys.exit(any(name in sys.modules for name in ('cryptography', 'model_signing')))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_broken_bundle_or_key_is_not_signed(
    tmp_path: Path, keys: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """One line says why, and there is no signature afterwards."""
    directory = write_bundle(tmp_path)
    _, public = keys
    for key in (public, tmp_path / "missing.pem", directory / "MODEL_CARD.md"):
        assert sign([str(directory), "--key", str(key)]) == 1
        assert capsys.readouterr().err.startswith(f"sign: {key}")
    (directory / "model.onnx").write_text("another")
    assert sign([str(directory), "--key", str(keys[0])]) == 1
    assert "not the file its manifest describes" in capsys.readouterr().err
    assert not (directory / SIGNATURE).exists()


def test_a_pinned_bundle_is_the_only_one_of_its_name(tmp_path: Path) -> None:
    """Another manifest, or a newer version that is not pinned, is refused; other models are left alone."""
    directory = write_bundle(tmp_path)
    write_bundle(tmp_path, "birds")
    pin = bundle.load(directory).seal.pin
    found = bundle.discover(tmp_path, trust=Trust((pin,)))
    assert (found["pets"].seal.vouched, found["birds"].seal.vouched) == (True, False)
    manifest = directory / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")
    bundle.discover(tmp_path)
    with pytest.raises(BundleError, match="which TRUEODDS_PINNED does not name"):
        bundle.discover(tmp_path, trust=Trust((pin,)))
    newer = bundle.load(write_bundle(tmp_path, version="2")).seal.pin
    with pytest.raises(BundleError, match=r"pets/2@sha256:.*which TRUEODDS_PINNED does not name"):
        bundle.discover(tmp_path, trust=Trust((pin,)))
    assert bundle.discover(tmp_path, trust=Trust((pin, newer)))["pets"].seal.vouched


def test_the_pin_is_the_digest_that_sha256sum_tells() -> None:
    """So anybody can make one."""
    found = bundle.discover(BUNDLES)["digits"]
    told = subprocess.run(["sha256sum", found.directory / "manifest.json"], capture_output=True, text=True, check=True)
    assert found.seal.pin == f"digits/{found.manifest.version}@sha256:{told.stdout.split()[0]}"
    assert Settings.from_environment({"TRUEODDS_PINNED": found.seal.pin}).trust.pins == (found.seal.pin,)


def test_a_pin_of_nothing_is_an_error(tmp_path: Path) -> None:
    """A misspelt one would protect nothing."""
    pin = bundle.load(write_bundle(tmp_path)).seal.pin
    with pytest.raises(SettingError, match="TRUEODDS_PINNED names birds/1"):
        bundle.discover(tmp_path, trust=Trust((pin, pin.replace("pets", "birds"))))


def test_a_pin_and_a_key_are_both_asked_for(signed: Path, public: Path) -> None:
    """One does not make up for the other."""
    pin = bundle.load(signed).seal.pin
    assert bundle.load(signed, Trust((pin,), public)).seal.vouched
    refused(signed, Trust((pin[:-64] + "0" * 64,), public), "TRUEODDS_PINNED does not name")
    (signed / SIGNATURE).unlink()
    refused(signed, Trust((pin,), public), "is not signed")


def test_torchscript_is_refused_unless_somebody_vouches() -> None:
    """Before anything of it is opened, naming the pins of all that lack one."""
    pins = [found.seal.pin for found in bundle.discover(BUNDLES).values()]
    chosen = Settings(backend="torchscript")
    with pytest.raises(BundleError, match="TorchScript can carry code") as refusal:
        check(chosen)
    assert f"TRUEODDS_PINNED: {','.join(pins)}" in str(refusal.value)
    with pytest.raises(BundleError, match="TorchScript can carry code"):
        registry.load(chosen, Board(), lambda name, report: None)


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """A copy of the real bundle, alone under its root."""
    directory = tmp_path / "digits" / committed("digits").name
    shutil.copytree(committed("digits"), directory)
    return directory


@pytest.mark.parametrize("backend", ["onnx", "torchscript"])
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_the_registry_serves_what_is_vouched_for(digits: Path, keys: tuple[Path, Path], backend: str) -> None:
    """Signed or pinned, with either backend."""
    assert sign([str(digits), "--key", str(keys[0])]) == 0
    pin = bundle.load(digits).seal.pin
    for given_trust in ({"TRUEODDS_SIGNED_BY": str(keys[1])}, {"TRUEODDS_PINNED": pin}):
        chosen = Settings.from_environment(
            {"TRUEODDS_BUNDLES": str(digits.parent.parent), "TRUEODDS_BACKEND": backend} | given_trust
        )
        served = registry.load(chosen, Board(), lambda name, report: None)
        served.close()
        assert served.models["digits"].bundle.seal.vouched


@pytest.mark.parametrize(("backend", "file"), [("onnx", "model.onnx"), ("torchscript", "model.torchscript.pt")])
def test_a_network_swapped_between_check_and_load_is_never_served(
    digits: Path, backend: str, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real files, the whole way: another sound network put in place after the check keeps the service down."""
    pin = bundle.load(digits).seal.pin
    chosen = Settings.from_environment(
        {"TRUEODDS_BUNDLES": str(digits.parent.parent), "TRUEODDS_BACKEND": backend, "TRUEODDS_PINNED": pin}
    )
    true_discover = bundle.discover

    def racing(*arguments: object) -> object:
        found = true_discover(*arguments)  # type: ignore[arg-type]
        shutil.copy(committed("cifar10") / file, digits / file)
        return found

    monkeypatch.setattr(bundle, "discover", racing)
    with pytest.raises(StartupError, match="not the file its manifest describes"):
        registry.load(chosen, Board(), lambda name, report: None)


@pytest.mark.slow
def test_the_service_says_in_one_line_why_it_does_not_start(digits: Path, public: Path, tmp_path: Path) -> None:
    """As its users meet it: a process that ends."""
    given = {"TRUEODDS_BUNDLES": str(digits.parent.parent), "TRUEODDS_SIGNED_BY": str(public)}
    command = [sys.executable, "-m", "service", "--port", str(free_port())]
    ended = subprocess.run(
        command, cwd=ROOT, env=environment(tmp_path, given), capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"trueodds: {digits} is not signed")
    assert len(ended.stderr.splitlines()) == 1
