"""A running CA as seen by the benchmark: addresses, prepared requests, and the CPU time to measure."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from ca_load import CpuClock, Target, kept
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from kept_connections import WronglyAnswered, request

OCSP_REQUEST = "application/ocsp-request"


@dataclass(frozen=True, slots=True)
class Question:
    """A POST that is sent repeatedly over plain HTTP."""

    url: str
    body: bytes
    media_type: str
    cpu: CpuClock


@dataclass(frozen=True, slots=True)
class RunningCa:
    """A CA that accepts connections."""

    cpu_seconds: CpuClock
    """CPU time of the part that issues and revokes."""
    memory_kib: Callable[[], int]
    """Memory of the same; of several processes, with shared pages counted once."""
    https: Target
    """Where certificates are requested; server and client exchange keys as they choose."""
    https_x25519: Target
    """The same with X25519, as every server has it."""
    issue_requests: Sequence[bytes]
    operators: Target
    """Where revocations are requested."""
    revoked_status: int
    revoke_requests: Callable[[Sequence[bytes]], list[bytes]]
    """Returns, from the answers to certificate requests, the requests that revoke those certificates."""
    ocsp_signed: Question
    ocsp_remembered: Question


async def check_answer(question: Question) -> None:
    """Send it once; raise `WronglyAnswered` if an OCSP request gets no status."""
    path = urlsplit(question.url).path
    async with kept(Target(question.url), 1) as (connection,):
        answer = await connection.send(request("POST", path, question.body, question.media_type), 200)
    if question.media_type == OCSP_REQUEST:
        said = ocsp.load_der_ocsp_response(answer).response_status
        if said is not ocsp.OCSPResponseStatus.SUCCESSFUL:
            raise WronglyAnswered(f"{question.url} answers {said.name}")


def ocsp_request(serial: int, issuer: x509.Certificate, nonce: bytes | None = None) -> bytes:
    """Return an OCSP request for *serial*, with a CertID in SHA-1, as most clients send."""
    algorithm = hashes.SHA1()  # noqa: S303 - The CertID names the issuer, it protects nothing.
    example = ocsp.OCSPRequestBuilder().add_certificate(issuer, issuer, algorithm).build()
    name = hashlib.sha1(issuer.subject.public_bytes(), usedforsecurity=False).digest()
    builder = ocsp.OCSPRequestBuilder().add_certificate_by_hash(name, example.issuer_key_hash, serial, algorithm)
    if nonce is not None:
        builder = builder.add_extension(x509.OCSPNonce(nonce), critical=False)
    return builder.build().public_bytes(Encoding.DER)
