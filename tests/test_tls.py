"""service.tls: encrypted, by a certificate that can be changed, for clients that have one where they must."""

import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.client import HTTPException, HTTPSConnection
from ipaddress import ip_address
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from service.errors import SettingError
from service.tls import Tls, chosen
from tests.abuse.test_faults import children, settled
from tests.conftest import ROOT, START_TIMEOUT_S, Server, environment, fixtures, free_port, stop

pytestmark = pytest.mark.slow


class Authority:
    """Makes certificates that are thrown away."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.file = folder / f"{name}.pem"
        certificate = self._builder(self._name, self._key).add_extension(x509.BasicConstraints(True, None), True)
        usage = x509.KeyUsage(False, False, False, False, False, True, False, False, False)
        signed = certificate.add_extension(usage, True).sign(self._key, hashes.SHA256())
        self.file.write_bytes(signed.public_bytes(Encoding.PEM))

    def issue(self, name: str) -> tuple[Path, Path]:
        """The files of a certificate for 127.0.0.1 and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        here = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = self._builder(subject, key).add_extension(here, False).add_extension(authority, False)
        signed = builder.sign(self._key, hashes.SHA256())
        files = self._folder / f"{name}.crt", self._folder / f"{name}.key"
        files[0].write_bytes(signed.public_bytes(Encoding.PEM))
        files[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return files

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder(self._name, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        )


@contextmanager
def serving(
    home: Path, settings: dict[str, str], context: ssl.SSLContext
) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """The port of a service that answers by TLS, and its process."""
    port = free_port()
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "service", "--port", str(port)],
            cwd=ROOT,
            env=environment(home, {"TRUEODDS_WORKERS": "1", **settings}),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and process.poll() is None:
            try:
                if httpx.get(f"https://127.0.0.1:{port}/readyz", verify=context).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.05)
        else:
            pytest.fail((home / "log").read_text())
        yield port, process
    finally:
        stop(process)


def shown(port: int, context: ssl.SSLContext) -> str:
    """The name in the certificate that the service shows."""
    with (
        socket.create_connection(("127.0.0.1", port)) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as tls,
    ):
        content = tls.getpeercert(binary_form=True)
        assert content
    (name,) = x509.load_der_x509_certificate(content).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(name.value)


def test_images_are_classified_encrypted_and_a_new_certificate_is_taken(tmp_path: Path) -> None:
    """On the direct way too; SIGHUP takes what the files hold then. Older versions and plain text get nowhere."""
    authority = Authority(tmp_path, "authority")
    certificate, key = authority.issue("first")
    context = ssl.create_default_context(cafile=str(authority.file))
    image = fixtures("digits")[0][0]
    settings = {"TRUEODDS_TLS_CERT": str(certificate), "TRUEODDS_TLS_KEY": str(key), "TRUEODDS_HEADER_TIMEOUT_S": "1"}
    with serving(tmp_path, settings, context) as (port, process):
        with httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=context) as client:
            for _ in range(5):
                response = client.post(
                    "/v1/models/digits/classify", content=image, headers={"content-type": "image/png"}
                )
                assert response.status_code == 200
            # One that is refused before it has sent all can read why.
            assert client.post("/v1/models/digits/classify", content=bytes(12_000_000)).status_code == 413
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{port}/readyz")
        old = ssl.create_default_context(cafile=str(authority.file))
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        old.set_ciphers("AES128-SHA256:@SECLEVEL=0")
        with pytest.raises(ssl.SSLError):
            shown(port, old)
        with socket.create_connection(("127.0.0.1", port)) as silent:
            silent.settimeout(8)
            # A handshake has the time that a head has.
            assert silent.recv(1) == b""
        assert shown(port, context) == "first"
        before = children(process.pid)
        for new, place in zip(authority.issue("second"), (certificate, key), strict=True):
            new.replace(place)
        process.send_signal(signal.SIGHUP)
        # For a moment the old worker serves beside the new one.
        wait_for(lambda: children(process.pid) not in ([], before) and len(children(process.pid)) == 1, 20)
        assert {shown(port, context) for _ in range(8)} == {"second"}


class Crowd:
    """Clients that ask again and again over kept connections, as HTTP has it, and count what becomes of it."""

    def __init__(self, port: int, context: ssl.SSLContext, clients: int) -> None:
        self.answered = self.lost = 0
        self._port, self._context = port, context
        self._stopped = False
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def __enter__(self) -> "Crowd":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped = True
        for thread in self._threads:
            thread.join(30)

    def _ask(self) -> None:
        image = fixtures("digits")[0][0]
        connection = HTTPSConnection("127.0.0.1", self._port, context=self._context, timeout=20)
        while not self._stopped:
            try:
                # Connects anew where the answer before said that it was the connection's last.
                connection.request("POST", "/v1/models/digits/classify", image, {"content-type": "image/png"})
                answer = connection.getresponse()
                answer.read()
                self.answered += answer.status == 200
                self.lost += answer.status != 200
            except (OSError, HTTPException):
                self.lost += 1
                connection.close()
            time.sleep(0.01)
        connection.close()


def wait_for(true: Callable[[], bool], limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline, f"not within {limit_s} s"
        time.sleep(0.1)


def test_a_bad_certificate_is_told_and_the_old_one_stays(tmp_path: Path) -> None:
    """At SIGHUP, with the workers that have it; a good one is then taken, and no request is lost through it all."""
    authority = Authority(tmp_path, "authority")
    certificate, key = authority.issue("first")
    good = certificate.read_bytes()
    context = ssl.create_default_context(cafile=str(authority.file))
    admin = free_port()
    settings = {
        "TRUEODDS_TLS_CERT": str(certificate),
        "TRUEODDS_TLS_KEY": str(key),
        "TRUEODDS_WORKERS": "2",
        "TRUEODDS_ADMIN_PORT": str(admin),
    }
    log = tmp_path / "log"
    with serving(tmp_path, settings, context) as (port, process):
        assert f"2 workers on https://127.0.0.1:{port}, for operators https://127.0.0.1:{admin} " in log.read_text()
        server = Server("", process, log)
        before = settled(server, 2)
        with Crowd(port, context, 6) as crowd:
            for number, bad in enumerate((b"", good[:-100], Authority(tmp_path, "other").issue("x")[0].read_bytes())):
                certificate.write_bytes(bad)
                process.send_signal(signal.SIGHUP)
                wait_for(lambda number=number: log.read_text().count("the old workers go on") == number + 1, 10)  # type: ignore[misc]
                time.sleep(1.5)
                assert settled(server, 2) == before
                assert {shown(each, context) for each in (port, admin) for _ in range(4)} == {"first"}
            for new, place in zip(authority.issue("second"), (certificate, key), strict=True):
                new.replace(place)
            process.send_signal(signal.SIGHUP)
            wait_for(lambda: len(now := children(process.pid)) == 2 and not set(now) & set(before), 30)
            assert {shown(each, context) for each in (port, admin) for _ in range(4)} == {"second"}
            time.sleep(1)
        assert crowd.lost == 0
        assert crowd.answered > 200
        told = log.read_text()
        assert told.count("are no certificate and its key") == 3
        assert "another takes its place" not in told
        assert "Traceback" not in told


def test_clients_need_a_certificate_where_an_authority_is_named(tmp_path: Path) -> None:
    """Of that authority, and no other."""
    authority, others = Authority(tmp_path, "authority"), Authority(tmp_path, "others")
    certificate, key = authority.issue("service")
    contexts = [ssl.create_default_context(cafile=str(authority.file)) for _ in range(3)]
    contexts[0].load_cert_chain(*authority.issue("client"))
    contexts[1].load_cert_chain(*others.issue("stranger"))
    settings = {
        "TRUEODDS_TLS_CERT": str(certificate),
        "TRUEODDS_TLS_KEY": str(key),
        "TRUEODDS_TLS_CLIENT_CA": str(authority.file),
    }
    with serving(tmp_path, settings, contexts[0]) as (port, _):
        for context in contexts[1:]:
            with pytest.raises(httpx.TransportError):
                httpx.get(f"https://127.0.0.1:{port}/readyz", verify=context)
        assert httpx.get(f"https://127.0.0.1:{port}/readyz", verify=contexts[0]).status_code == 200


def test_what_is_no_certificate_is_told(tmp_path: Path) -> None:
    """And a key without one: who set it means to be encrypted."""
    authority = Authority(tmp_path, "authority")
    certificate, key = authority.issue("one")
    _, another = authority.issue("two")
    empty = tmp_path / "empty"
    empty.touch()
    for tls, told in (
        (Tls(tmp_path / "missing", key), "TLS_CERT"),
        (Tls(certificate, another), "TLS_CERT"),
        (Tls(certificate), "TLS_CERT"),
        (Tls(certificate, key, empty), "CLIENT_CA"),
    ):
        with pytest.raises(SettingError, match=told):
            tls.context()
    for unused in ((None, key, None), (None, None, key)):
        with pytest.raises(SettingError, match="nothing without"):
            chosen(*unused)
    assert chosen(None, None, None) is None
    assert Tls(certificate, key).context().minimum_version is ssl.TLSVersion.TLSv1_2
