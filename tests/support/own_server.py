"""A CA of its own, and the TLS of a server that has its certificate: for doubles of brokers that are attacked."""

from __future__ import annotations

import ssl
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from device_sim.attack.issuer import SERVER_AUTH, Issuer
from device_sim.credentials.certification import common_name
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role


def own_server(
    directory: Path, *, asks: bool = True, key: Ed448PrivateKey | None = None
) -> tuple[Issuer, ssl.SSLContext]:
    """Return the CA, whose certificate is in ca.pem below *directory*, and the TLS of broker-1 at localhost.

    *asks*: for a client certificate of that CA. Its own *key* may be one that few know.
    """
    authority = Issuer.founded(common_name("CA"))
    identity = Identity("fleet.internal", Role.BROKER, "broker-1")
    own = authority.issue(identity, usages=SERVER_AUTH, dns_names=["localhost"], key=key)  # type: ignore[arg-type]
    pem = own.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (directory / "server.pem").write_bytes(own.certificate.public_bytes(Encoding.PEM) + pem)
    (directory / "ca.pem").write_bytes(authority.pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "server.pem")
    if asks:
        context.load_verify_locations(directory / "ca.pem")
        context.verify_mode = ssl.CERT_REQUIRED
    return authority, context
