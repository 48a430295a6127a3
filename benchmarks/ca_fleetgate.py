"""This repository's service as a CA for comparison: a device exchanges its one-time token for a certificate by EST.

OCSP answers are signed per request if it has a nonce, and cached otherwise.
"""

from __future__ import annotations

import base64
import json
import secrets
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from ca_load import Target, by_x25519
from ca_running import OCSP_REQUEST, Question, RunningCa, ocsp_request
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from history import add_history
from kept_connections import request
from peers import ready_line
from postgresql import Postgresql
from processes import Child

from provisioning.client.csr import build_csr
from provisioning.client.operator import OperatorClient
from provisioning.pki.keys import generate_key
from provisioning.pki.tls import CredentialFiles, client_context

_SECRET = "FLEET_PROVISIONING_PASSPHRASE"  # noqa: S105 - The variable's name, not a passphrase.
_START_SECONDS = 60
_BATCH = 500


@asynccontextmanager
async def fleetgate(
    folder: Path, server: Postgresql | None, *, requests: int, already_revoked: int, workers: int = 1
) -> AsyncIterator[RunningCa]:
    """Create, fill and run the service, with *workers* workers, until the block ends."""
    ca = folder / "ca"
    unlimited = ("FLEET_PROVISIONING_REQUESTS_PER_SECOND", "FLEET_PROVISIONING_OCSP_REQUESTS_PER_SECOND")
    environment = {_SECRET: secrets.token_urlsafe(), **dict.fromkeys(unlimited, "0")}
    url = f"sqlite:///{ca / 'fleet.db'}"
    if server is not None:
        url = server.sqlalchemy_url(server.new_database())
        environment["FLEET_PROVISIONING_DATABASE_URL"] = url
    program = (sys.executable, "-m", "provisioning")
    with Child([*program, "init", "--dir", ca], folder / "init.log", environment=environment) as init:
        if init.wait(_START_SECONDS):
            raise init.failed("did not make a CA")
    issuer = x509.load_pem_x509_certificate((ca / "issuing-ca.crt").read_bytes())
    if already_revoked:
        identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest.hex()
        add_history(url, identifier, already_revoked)
    serve: list[str | Path] = [*program, "serve", "--dir", ca, "--port", "0", "--http-port", "0"]
    if workers > 1:
        serve += ["--workers", str(workers)]
    with Child(serve, folder / "service.log", environment=environment) as service:
        https, http = ready_line(service, "fleet-provisioning")
        credential, anchors = CredentialFiles(ca / "operator.crt", ca / "operator.key"), ca / "ca-bundle.crt"
        names = [f"d{number:06}" for number in range(requests)]
        async with OperatorClient(https, anchors, credential) as operator:
            tokens = [
                (str(token.device), token.token)
                for start in range(0, len(names), _BATCH)
                for token in await operator.create_tokens(devices=names[start : start + _BATCH], group="bench")
            ]
            serial = int((await anext(operator.certificates(device="admin"))).serial, 16)
        yield RunningCa(
            service.family_cpu_seconds,
            service.memory_kib if workers == 1 else service.family_memory_kib,
            Target(https, client_context(anchors, None, allow_tls12=True)),
            Target(https, by_x25519(client_context(anchors, None, allow_tls12=True))),
            [_enrol(device, token) for device, token in tokens],
            Target(https, client_context(anchors, credential, allow_tls12=True)),
            201,
            _revocations,
            Question(f"{http}/ocsp", ocsp_request(serial, issuer, b"n" * 32), OCSP_REQUEST, service.family_cpu_seconds),
            Question(f"{http}/ocsp", ocsp_request(serial, issuer), OCSP_REQUEST, service.family_cpu_seconds),
        )


def _enrol(device: str, token: str) -> bytes:
    der = build_csr(generate_key(), device).public_bytes(Encoding.DER)
    return request(
        "POST", "/.well-known/est/simpleenroll", base64.b64encode(der), "application/pkcs10", (device, token)
    )


def _revocations(answers: Sequence[bytes]) -> list[bytes]:
    found = []
    for answer in answers:
        (certificate,) = pkcs7.load_der_pkcs7_certificates(base64.b64decode(answer))
        (name,) = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        body = json.dumps({"device": name.value, "reason": "superseded"}).encode()
        found.append(request("POST", "/v1/revocations", body, "application/json"))
    return found
