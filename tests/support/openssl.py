"""OpenSSL's command line: keys, requests and verification by third-party code."""

from __future__ import annotations

import base64
import subprocess
from dataclasses import dataclass
from pathlib import Path

from provisioning.pki.tls import CredentialFiles

P256 = ("ec", "-pkeyopt", "ec_paramgen_curve:P-256")


def openssl(*arguments: str | Path, data: bytes = b"", check: bool = True) -> bytes:
    """Run openssl and return its stdout."""
    done = subprocess.run(["openssl", *map(str, arguments)], input=data, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0 or not check, done.stderr.decode()
    return done.stdout


@dataclass(frozen=True)
class OpensslDevice:
    """A device whose key and requests are made by openssl in its own directory."""

    directory: Path
    name: str

    @property
    def key(self) -> Path:
        return self.directory / f"{self.name}.key"

    @property
    def _request(self) -> Path:
        return self.directory / f"{self.name}.csr"

    @property
    def certificate(self) -> Path:
        return self.directory / f"{self.name}.crt"

    @property
    def credential(self) -> CredentialFiles:
        return CredentialFiles(self.certificate, self.key)

    def request(
        self, *, subject: str | None = None, algorithm: tuple[str, ...] = P256, extra: tuple[str, ...] = ()
    ) -> bytes:
        """Generate a new key and return a request for it, as base64 of DER with line ends, as openssl writes it."""
        return self._made("-newkey", *algorithm, "-nodes", "-keyout", self.key,
                          "-subj", subject or f"/CN={self.name}", *extra)  # fmt: skip

    def another(self, *, subject: str | None = None, key: Path | None = None) -> bytes:
        """Return a request for the key in file *key*; None: for the device's current key."""
        return self._made("-key", key or self.key, "-subj", subject or f"/CN={self.name}")

    def renewal(self, names: str, *, new_key: bool) -> bytes:
        """Return a request with this subject and these alternative names, for the same key or a new one."""
        new = ("-newkey", *P256, "-nodes", "-keyout", self.directory / f"{self.name}-new.key")
        key = new if new_key else ("-key", self.key)
        return self._made(*key, "-subj", f"/CN={self.name}", "-addext", f"subjectAltName={names}")

    def _made(self, *options: str | Path) -> bytes:
        openssl("req", "-new", *options, "-outform", "DER", "-out", self._request)
        return self.encoded()

    def encoded(self) -> bytes:
        """Return the last request in EST's encoding."""
        return base64.encodebytes(self._request.read_bytes())

    def take(self, answer: bytes) -> None:
        """Unwrap the certificate in an EST answer and keep it."""
        pem = openssl("pkcs7", "-inform", "DER", "-print_certs", data=base64.b64decode(answer))
        self.certificate.write_bytes(pem)


def certificate_facts(path: Path, *options: str) -> str:
    """Return ``openssl x509``'s output for a certificate."""
    return openssl("x509", "-in", path, "-noout", *options).decode()
