"""Measure the provisioning service: enrolments, revocations and OCSP answers a second, and what one costs.

    .venv/bin/python benchmarks/provisioning_service.py                              SQLite, 2,000 of each
    … --already-revoked 100000                                               in a store with a history
    … --database-url postgresql+psycopg://fleet@127.0.0.1/bench              an empty database

The service is the real one, in a process of its own, durable; the client is this process: kept connections, one request
under way on each, requests made beforehand. What counts is the CPU time of the service a request, which hardly depends
on what else the machine does: a worker with a core of its own carries 1 / that. The rates are those of a client and a
server that share the machine. OCSP is asked with a nonce (signed for each request) and without (remembered).

Rules
-----
1. A request that is not answered as it should be fails the run.
2. The connections are open, and the first request of each kind answered, before anything is counted.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import math
import secrets
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from history import add_history
from kept_connections import KeptConnection, WronglyAnswered, connections, request
from peers import ready_line
from processes import Child, ChildFailed, ended_by_signals
from rich.console import Console
from rich.table import Table

from provisioning.client.csr import build_csr
from provisioning.client.operator import OperatorClient
from provisioning.pki.keys import generate_key
from provisioning.pki.tls import CredentialFiles, client_context

_BATCH = 500
_SECRET = "FLEET_PROVISIONING_PASSPHRASE"  # noqa: S105 - The variable's name, not a passphrase.


@dataclass(frozen=True, slots=True)
class Result:
    """One kind of request."""

    title: str
    seconds: float
    server_cpu: float
    latencies: Sequence[float]

    @property
    def a_second(self) -> float:
        """The rate on this machine, with this client beside it."""
        return len(self.latencies) / self.seconds

    @property
    def cpu_microseconds(self) -> float:
        """What one request costs the service."""
        return self.server_cpu / len(self.latencies) * 1e6

    def quantile(self, share: float) -> float:
        """Return the smallest latency that at least *share* of all do not exceed."""
        ascending = sorted(self.latencies)
        return ascending[max(0, math.ceil(len(ascending) * share) - 1)]


async def measure(
    title: str, service: Child, opened: Sequence[KeptConnection], requests: Sequence[bytes], expected: int
) -> Result:
    """Send *requests* over the connections, one under way on each; the first one is not counted."""
    await opened[0].send(requests[0], expected)
    waiting = list(reversed(requests[1:]))
    latencies: list[float] = []

    async def work(connection: KeptConnection) -> None:
        while waiting:
            each = waiting.pop()
            begun = time.perf_counter()
            await connection.send(each, expected)
            latencies.append(time.perf_counter() - begun)

    cpu, begun = service.cpu_seconds(), time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for connection in opened:
            tasks.create_task(work(connection))
    return Result(title, time.perf_counter() - begun, service.cpu_seconds() - cpu, latencies)


def ocsp_request(serial: int, issuer: x509.Certificate, nonce: bytes | None) -> bytes:
    """Return an OCSP request, sent as POST."""
    example = ocsp.OCSPRequestBuilder().add_certificate(issuer, issuer, hashes.SHA256()).build()
    name_hash = hashes.Hash(hashes.SHA256())
    name_hash.update(issuer.subject.public_bytes())
    builder = ocsp.OCSPRequestBuilder().add_certificate_by_hash(
        name_hash.finalize(), example.issuer_key_hash, serial, hashes.SHA256()
    )
    if nonce is not None:
        builder = builder.add_extension(x509.OCSPNonce(nonce), critical=False)
    der = builder.build().public_bytes(Encoding.DER)
    return request("POST", "/ocsp", der, "application/ocsp-request")


async def run(options: argparse.Namespace, folder: Path, console: Console) -> list[Result]:
    """Found, fill, serve, and measure one kind of request after the other."""
    ca = folder / "ca"
    environment = {_SECRET: secrets.token_urlsafe(), "FLEET_PROVISIONING_REQUESTS_PER_SECOND": "0"}
    url = options.database_url or f"sqlite:///{ca / 'fleet.db'}"
    if options.database_url:
        environment["FLEET_PROVISIONING_DATABASE_URL"] = url
    program = (sys.executable, "-m", "provisioning")
    with Child([*program, "init", "--dir", ca], folder / "init.log", environment=environment) as init:
        if await asyncio.to_thread(init.wait, 60):
            raise init.failed("did not make a CA")
    issuer = x509.load_pem_x509_certificate((ca / "issuing-ca.crt").read_bytes())
    if options.already_revoked:
        identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest.hex()
        add_history(url, identifier, options.already_revoked)
    serve: list[str | Path] = [*program, "serve", "--dir", ca, "--port", "0", "--http-port", "0"]
    with Child(serve, folder / "service.log", environment=environment) as service:
        https, http = await asyncio.to_thread(ready_line, service, "fleet-provisioning")
        return await _measure_all(options, service, ca, (https, http), issuer, console)


async def _measure_all(
    options: argparse.Namespace,
    service: Child,
    ca: Path,
    urls: tuple[str, str],
    issuer: x509.Certificate,
    console: Console,
) -> list[Result]:
    credential = CredentialFiles(ca / "operator.crt", ca / "operator.key")
    anchors = ca / "ca-bundle.crt"
    names = [f"d{number:06}" for number in range(options.requests + 1)]
    async with OperatorClient(urls[0], anchors, credential) as operator:
        tokens = [
            token
            for start in range(0, len(names), _BATCH)
            for token in await operator.create_tokens(devices=names[start : start + _BATCH], group="bench")
        ]
    enrol = [
        request(
            "POST",
            "/.well-known/est/simpleenroll",
            base64.b64encode(build_csr(generate_key(), str(token.device)).public_bytes(Encoding.DER)),
            "application/pkcs10",
            (str(token.device), token.token),
        )
        for token in tokens
    ]
    revoke = [
        request(
            "POST", "/v1/revocations", json.dumps({"device": name, "reason": "superseded"}).encode(), "application/json"
        )
        for name in names
    ]
    results = []
    async with connections(urls[0], client_context(anchors, None, allow_tls12=True), options.connections) as kept:
        results.append(await measure("enrolment", service, kept, enrol, 200))
    console.print(f"{len(names)} devices enrolled")
    async with OperatorClient(urls[0], anchors, credential) as operator:
        serial = int((await anext(operator.certificates(device=names[0]))).serial, 16)
    async with connections(urls[1], None, options.connections) as kept:
        signed = [ocsp_request(serial, issuer, secrets.token_bytes(32)) for _ in names]
        known = [ocsp_request(serial, issuer, None)] * len(names)
        results.append(await measure("OCSP, signed", service, kept, signed, 200))
        results.append(await measure("OCSP, remembered", service, kept, known, 200))
    async with connections(urls[0], client_context(anchors, credential, allow_tls12=True), options.connections) as kept:
        half = len(revoke) // 2
        results.append(await measure("revocation, one by one", service, kept[:1], revoke[:half], 201))
        title = f"revocation, {options.connections} under way"
        results.append(await measure(title, service, kept, revoke[half:], 201))
    return results


def show(console: Console, results: Sequence[Result]) -> None:
    """Print the table."""
    table = Table(title="provisioning service, kept connections")
    for heading in ("request", "answered", "a second", "p50 ms", "p99 ms", "server CPU, µs", "a second and core"):
        table.add_column(heading, justify="left" if heading == "request" else "right")
    for result in results:
        table.add_row(
            result.title,
            f"{len(result.latencies):,}",
            f"{result.a_second:,.0f}",
            f"{result.quantile(0.5) * 1e3:.2f}",
            f"{result.quantile(0.99) * 1e3:.2f}",
            f"{result.cpu_microseconds:,.0f}",
            f"{1e6 / result.cpu_microseconds:,.0f}",
        )
    console.print(table)


def main() -> int:
    """Measure what the command line asks for; return the exit code."""
    options = _options()
    console = Console(stderr=True)
    results: list[Result] = []
    failure: str | None = None
    try:
        with ended_by_signals(), tempfile.TemporaryDirectory(prefix="fleetgate-bench-") as folder:
            results = asyncio.run(run(options, Path(folder), console))
    except* KeyboardInterrupt:
        failure = "stopped; nothing is left running"
    except* (WronglyAnswered, ChildFailed) as group:
        failure = str(group.exceptions[0])
    if failure is not None:
        console.print(f"provisioning: {failure}", markup=False)
        return 1
    show(Console(width=None if sys.stdout.isatty() else 130), results)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--requests", type=int, default=2000, help="of each kind (2000)")
    parser.add_argument("--connections", type=int, default=16, help="kept connections, one request on each (16)")
    parser.add_argument("--already-revoked", type=int, default=0, help="certificates revoked before (0)")
    parser.add_argument("--database-url", help="an empty database, instead of SQLite in a temporary folder")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
