"""How a device renews by hand, on a socket of its own, so that it sees the staple of the enrolment service."""

from __future__ import annotations

import base64
import socket
import ssl
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from provisioning.pki.stapling import ask_for_staple
from provisioning.pki.tls import CredentialFiles
from tests.support.devices.staple_check import check_staple

_PATIENCE = 5.0


def reenrol_by_hand(
    est_url: str, cafile: Path, files: CredentialFiles, csr: x509.CertificateSigningRequest, flaw: str, *, asks: bool
) -> x509.Certificate:
    """Return the certificate for *csr*; raise `ConnectionError` at a service whose staple is not to be believed.

    *asks*: whether the device asks for a staple; *flaw*: what its check of it leaves out.
    """
    context = ssl.create_default_context(cafile=str(cafile))
    context.load_cert_chain(files.certificate, files.key)
    if asks:
        assert ask_for_staple(context)
    where = urlsplit(est_url)
    body = base64.b64encode(csr.public_bytes(Encoding.DER))
    head = (
        f"POST /.well-known/est/simplereenroll HTTP/1.1\r\nHost: {where.netloc}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with (
        socket.create_connection((where.hostname or "", where.port or 443), timeout=_PATIENCE) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as tls,
    ):
        if asks and flaw != "ignores-staple":
            check_staple(tls, x509.load_pem_x509_certificate(cafile.read_bytes()), flaw)
        tls.sendall(head.encode() + body)
        answer = b"".join(iter(lambda: tls.recv(65536), b""))
    status, _, content = answer.partition(b"\r\n\r\n")
    if not status.startswith(b"HTTP/1.1 200 "):
        raise ConnectionError(f"the service answered {status[:20]!r}")
    return pkcs7.load_der_pkcs7_certificates(base64.b64decode(content))[0]
