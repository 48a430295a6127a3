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
from ipaddress import IPv4Address
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
from postgresql import Postgresql
from processes import Child

from provisioning.client.csr import build_csr
from provisioning.pki.keys import generate_key, key_to_pem

_START_SECONDS = 30
_SERIAL = 4711
"""The serial number of the certificate in the OCSP requests."""
_OF_A_CA = (
    x509.BasicConstraints(ca=True, path_length=None),
    x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    ),
)
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
    key = generate_key()
    issuer, asked_for = _authorities(folder, key)
    key_file, certificate_file, responses = folder / "ca.key", folder / "ca.crt", folder / "responses"
    responses.write_bytes(base64.b64encode(_ocsp_answer(issuer, key)) + b"\n")
    shared = secrets.token_bytes(32)
    database = _database(folder, server, issuer, already_revoked)
    quiet = ("-loglevel", "3")
    ca = ("serve", "-ca", certificate_file, "-ca-key", key_file, "-config", _configuration(folder, shared), *quiet)
    tls = ("-tls-cert", folder / "server.crt", "-tls-key", folder / "server.key", "-db-config", database)
    signer = ("-responder", certificate_file, "-responder-key", key_file)
    with (
        _started(folder, (cfssl, *ca, *tls)) as (issuing, issuing_port),
        _started(folder, (cfssl, *ca, *signer)) as (signing, signing_port),
        _started(folder, (cfssl, "ocspserve", "-responses", responses, *quiet)) as (serving, serving_port),
    ):
        url = f"https://127.0.0.1:{issuing_port}"
        root = str(folder / "root.crt")
        https = Target(url, ssl.create_default_context(cafile=root))
        https_x25519 = Target(url, by_x25519(ssl.create_default_context(cafile=root)))
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


def _authorities(folder: Path, key: ec.EllipticCurvePrivateKey) -> tuple[x509.Certificate, x509.Certificate]:
    """Write root.crt, the issuing CA with *key* (ca.crt, ca.key) and server.crt with its chain (server.key).

    Return the certificate of the issuing CA, which signs OCSP answers itself, and one that it has issued: the server's.
    """
    root_key, server_key = generate_key(), generate_key()
    loopback = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))])
    root = _certified("bench root", root_key, "bench root", root_key, *_OF_A_CA)
    issuer = _certified("bench CA", key, "bench root", root_key, *_OF_A_CA)
    server = _certified("localhost", server_key, "bench CA", key, loopback)
    for name, secret in (("ca.key", key), ("server.key", server_key)):
        (folder / name).touch(mode=0o600)
        (folder / name).write_bytes(key_to_pem(secret))
    for name, chain in (("root.crt", [root]), ("ca.crt", [issuer]), ("server.crt", [server, issuer])):
        (folder / name).write_bytes(b"".join(each.public_bytes(Encoding.PEM) for each in chain))
    return issuer, server


def _certified(
    subject: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    *extensions: x509.ExtensionType,
) -> x509.Certificate:
    """Return a certificate for *key* that is valid for a year, with *extensions* and the key identifiers."""
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .issuer_name(_named(issuer))
        .subject_name(_named(subject))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=365))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=extension in _OF_A_CA)
    return builder.sign(issuer_key, hashes.SHA256())


def _named(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])


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
