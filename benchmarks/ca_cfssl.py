"""cfssl as a CA for comparison: Debian's golang-cfssl, with a database.

``cfssl serve`` issues to clients that authenticate the request with a shared key (``authsign``, HMAC): it uses up no
token, keeps no devices, no audit log and no revocation feed. It signs OCSP answers at ``ocspsign``, an API for filling
a responder; ``cfssl ocspserve`` serves pre-signed answers, here from memory, its fastest mode.

It gets the same kind of CA key (ECDSA P-256) below a root, an HTTPS certificate with as long a chain, the same
extensions to write, and an equally durable database: SQLite in WAL mode with synchronous FULL (its driver's default,
NORMAL, loses commits on power failure), or PostgreSQL. Each of its three processes is measured for what it does.
"""

from __future__ import annotations

import base64
import hmac
import json
import secrets
import socket
import sqlite3
import ssl
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ca_load import Target, by_x25519
from ca_running import OCSP_REQUEST, Question, RunningCa, ocsp_request
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from foreign_peers import program
from kept_connections import request
from pki import SERVER, SERVER_NAMES, Authority, write_credential
from postgresql import Postgresql
from processes import Child

from provisioning.client.csr import build_csr
from provisioning.pki.keys import generate_key

_START_SECONDS = 30
_SERIAL = 4711
"""The serial number of the certificate in the OCSP requests."""
# Its migrations 001 and 002, for both databases.
_CERTIFICATES = """CREATE TABLE certificates (
    serial_number {blob} NOT NULL, authority_key_identifier {blob} NOT NULL, ca_label {blob}, status {blob} NOT NULL,
    reason int, expiry {time}, revoked_at {time}, pem {blob} NOT NULL, issued_at {time}, not_before {time},
    metadata {json}, sans {json}, common_name text, PRIMARY KEY (serial_number, authority_key_identifier))"""
_OCSP_RESPONSES = """CREATE TABLE ocsp_responses (
    serial_number {blob} NOT NULL, authority_key_identifier {blob} NOT NULL, body {blob} NOT NULL, expiry {time},
    PRIMARY KEY (serial_number, authority_key_identifier), FOREIGN KEY (serial_number, authority_key_identifier)
    REFERENCES certificates (serial_number, authority_key_identifier))"""
_TABLES = (_CERTIFICATES, _OCSP_RESPONSES)
_SQLITE_HISTORY = """
    WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < :count)
    INSERT INTO certificates (serial_number, authority_key_identifier, status, reason, expiry, revoked_at, pem)
    SELECT n, :authority, 'revoked', 4, datetime('now', '+30 days'), datetime('now'), '0'
    FROM numbers WHERE n <= :count"""
_POSTGRESQL_HISTORY = """
    INSERT INTO certificates (serial_number, authority_key_identifier, status, reason, expiry, revoked_at, pem)
    SELECT n::text::bytea, '{authority}'::bytea, 'revoked', 4, now() + interval '30 days', now(), '0'
    FROM generate_series(1, {count}) AS n"""


@asynccontextmanager
async def cfssl(
    folder: Path, server: Postgresql | None, *, requests: int, already_revoked: int
) -> AsyncIterator[RunningCa]:
    """Create, fill and run cfssl's three services until the block ends."""
    cfssl = program("cfssl", "golang-cfssl")
    root, authority = Authority.create_pair()
    anchor, issuer, responses = folder / "root.crt", authority.certificate, folder / "responses"
    anchor.write_bytes(root.pem)
    own = write_credential(folder / "ca", authority.pem, authority.key)
    server_files = authority.issue(SERVER, folder / "server", SERVER_NAMES)
    responses.write_bytes(base64.b64encode(_ocsp_answer(issuer, authority.key)) + b"\n")
    shared = secrets.token_bytes(32)
    database = _database(folder, server, issuer, already_revoked)
    quiet = ("-loglevel", "3")
    ca = ("serve", "-ca", own.certificate, "-ca-key", own.key, "-config", _configuration(folder, shared), *quiet)
    tls = ("-tls-cert", server_files.certificate, "-tls-key", server_files.key, "-db-config", database)
    signer = ("-responder", own.certificate, "-responder-key", own.key)
    with (
        _started(folder, (cfssl, *ca, *tls)) as (issuing, issuing_port),
        _started(folder, (cfssl, *ca, *signer)) as (signing, signing_port),
        _started(folder, (cfssl, "ocspserve", "-responses", responses, *quiet)) as (serving, serving_port),
    ):
        url = f"https://127.0.0.1:{issuing_port}"
        https = Target(url, ssl.create_default_context(cafile=anchor))
        https_x25519 = Target(url, by_x25519(ssl.create_default_context(cafile=anchor)))
        asked_for = x509.load_pem_x509_certificate(server_files.certificate.read_bytes())
        to_sign = {"certificate": asked_for.public_bytes(Encoding.PEM).decode(), "status": "good"}
        yield RunningCa(
            issuing.cpu_seconds,
            issuing.memory_kib,
            https,
            https_x25519,
            [_signing_request(f"d{number:06}", shared) for number in range(requests)],
            https,
            200,
            _revocations,
            Question(
                f"http://127.0.0.1:{signing_port}/api/v1/cfssl/ocspsign",
                json.dumps(to_sign).encode(),
                "application/json",
                signing.cpu_seconds,
            ),
            Question(
                f"http://127.0.0.1:{serving_port}/", ocsp_request(_SERIAL, issuer), OCSP_REQUEST, serving.cpu_seconds
            ),
        )


def _configuration(folder: Path, shared: bytes) -> Path:
    profile = {
        "usages": ["digital signature", "client auth"],
        "expiry": "720h",
        "auth_key": "bench",
        "crl_url": "http://127.0.0.1:8080/crl/issuing-ca.crl",
        "ocsp_url": "http://127.0.0.1:8080/ocsp",
        "issuer_urls": ["http://127.0.0.1:8080/ca/issuing-ca.crt"],
    }
    keys = {"bench": {"type": "standard", "key": shared.hex()}}
    path = folder / "cfssl.json"
    path.touch(mode=0o600)
    path.write_text(json.dumps({"signing": {"default": profile}, "auth_keys": keys}))
    return path


def _signing_request(name: str, shared: bytes) -> bytes:
    csr = build_csr(generate_key(), name).public_bytes(Encoding.PEM).decode()
    inner = json.dumps({"certificate_request": csr, "hosts": [f"spiffe://fleet.internal/device/bench/{name}"]}).encode()
    token = hmac.digest(shared, inner, "sha256")
    body = {"token": base64.b64encode(token).decode(), "request": base64.b64encode(inner).decode()}
    return request("POST", "/api/v1/cfssl/authsign", json.dumps(body).encode(), "application/json")


def _revocations(answers: Sequence[bytes]) -> list[bytes]:
    found = []
    for answer in answers:
        certificate = x509.load_pem_x509_certificate(json.loads(answer)["result"]["certificate"].encode())
        authority = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
        body = {
            "serial": str(certificate.serial_number),
            "authority_key_id": (authority or b"").hex(),
            "reason": "superseded",
        }
        found.append(request("POST", "/api/v1/cfssl/revoke", json.dumps(body).encode(), "application/json"))
    return found


def _ocsp_answer(issuer: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> bytes:
    asked = ocsp.load_der_ocsp_request(ocsp_request(_SERIAL, issuer))
    now = datetime.now(UTC)
    return (
        ocsp.OCSPResponseBuilder()
        .add_response_by_hash(
            asked.issuer_name_hash, asked.issuer_key_hash, _SERIAL, asked.hash_algorithm,
            ocsp.OCSPCertStatus.GOOD, now, now + timedelta(days=1), None, None,
        )
        .responder_id(ocsp.OCSPResponderEncoding.HASH, issuer)
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.DER)
    )  # fmt: skip


def _database(folder: Path, server: Postgresql | None, issuer: x509.Certificate, already_revoked: int) -> Path:
    """Create the tables, with *already_revoked* rows; return the file with the database's address."""
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest.hex()
    if server is None:
        file = folder / "cfssl.db"
        connection = sqlite3.connect(file)
        connection.execute("PRAGMA journal_mode = WAL")
        for table in _TABLES:
            connection.execute(table.format(blob="blob", time="timestamp", json="text"))
        with connection:
            connection.execute(_SQLITE_HISTORY, {"count": already_revoked, "authority": identifier})
        connection.close()
        options = "_busy_timeout=10000&_journal_mode=WAL&_synchronous=FULL"
        settings = {"driver": "sqlite3", "data_source": f"file:{file}?{options}"}
    else:
        name = server.new_database()
        tables = [table.format(blob="bytea", time="timestamptz", json="jsonb") for table in _TABLES]
        server.run(name, *tables, _POSTGRESQL_HISTORY.format(count=already_revoked, authority=identifier))
        settings = {"driver": "postgres", "data_source": server.libpq_url(name)}
    path = folder / "database.json"
    path.write_text(json.dumps(settings))
    return path


@contextmanager
def _started(folder: Path, arguments: Sequence[str | Path]) -> Iterator[tuple[Child, int]]:
    """Run a service on a port that was free a moment ago: it cannot choose one itself."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    with Child([*arguments, "-address", "127.0.0.1", "-port", str(port)], folder / f"{port}.log") as process:
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
            except OSError:
                if not process.running or time.monotonic() > deadline:
                    raise process.failed("does not start") from None
                time.sleep(0.05)
            else:
                break
        yield process, port
