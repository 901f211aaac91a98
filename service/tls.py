"""TLS: what the service shows, what it speaks, and whom it believes.

Certificates are read when a worker starts, so SIGHUP, which replaces all workers, takes new ones.
"""

import ssl
from dataclasses import dataclass
from pathlib import Path

from service.errors import SettingError

# For TLS 1.2: keys of one connection alone, ciphers that also vouch for what they encrypt. Those of 1.3 are all so.
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"


@dataclass(frozen=True)
class Tls:
    """PEM files: the certificate with those that lead to its authority, its key (or both in one), and the
    authority of clients, who then need a certificate of its.
    """

    certificate: Path
    key: Path | None = None
    client_authority: Path | None = None

    def context(self) -> ssl.SSLContext:
        """Raises SettingError."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(CIPHERS)
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
        context.set_alpn_protocols(["http/1.1"])
        try:
            # An empty password: nobody is there to be asked for one.
            context.load_cert_chain(self.certificate, self.key, password="")  # nosec B106
        except OSError as error:
            raise SettingError(
                f"TRUEODDS_TLS_CERT={self.certificate} and TRUEODDS_TLS_KEY={self.key or self.certificate} are no "
                f"certificate and its key, unencrypted, in PEM form ({error.strerror or error})."
            ) from error
        if self.client_authority:
            context.verify_mode = ssl.CERT_REQUIRED
            try:
                context.load_verify_locations(self.client_authority)
            except OSError as error:
                raise SettingError(
                    f"TRUEODDS_TLS_CLIENT_CA={self.client_authority} holds no certificate in PEM form "
                    f"({error.strerror or error})."
                ) from error
        return context


def chosen(certificate: Path | None, key: Path | None, client_authority: Path | None) -> Tls | None:
    """None for no TLS. Raises SettingError for what would look like TLS and be none."""
    if certificate:
        return Tls(certificate, key, client_authority)
    if key or client_authority:
        raise SettingError("TRUEODDS_TLS_KEY and TRUEODDS_TLS_CLIENT_CA mean nothing without TRUEODDS_TLS_CERT.")
    return None
