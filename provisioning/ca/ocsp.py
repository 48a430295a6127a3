"""OCSP requests read and responses signed (RFC 6960, RFC 9919, RFC 9654), without I/O and without a clock.

Theory
------
A response is signed by a delegated signer: a key that can do nothing else, certified for a few days by the CA whose
certificates it answers for (RFC 6960 §4.2.2.2), so the CA's own key signs once in days and not once per request.

Rules
-----
1. One certificate per request; the response repeats the request's CertID with its hash algorithm (RFC 9919 §3), octet
   for octet.
2. The responder is identified by key; thisUpdate and nextUpdate are always present, without fractions (RFC 9919 §3.2).
3. A nonce has 1 to 128 octets and is echoed unchanged (RFC 9654 §2.1); it is the only response extension.
4. Signature and name of the requestor are ignored (RFC 9919 §3.1.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from provisioning.ca import ocsp_fields
from provisioning.ca.crl import REASON_CODES
from provisioning.ca.der import SEQUENCE, children
from provisioning.ca.signing import signature_algorithm, signer
from provisioning.pki.keys import PrivateKey
from provisioning.pki.revocation_reason import RevocationReason

_NONCE_OCTETS: Final = range(1, 129)
_CRITICAL: Final = bytes.fromhex("0101ff")
_CertIdHash = hashes.SHA1 | hashes.SHA256 | hashes.SHA384 | hashes.SHA512
_HASHES: Final[Sequence[_CertIdHash]] = (
    hashes.SHA1(),  # noqa: S303 - the CertID of old clients
    hashes.SHA256(),
    hashes.SHA384(),
    hashes.SHA512(),
)
_NAMES: Final = frozenset(each.name for each in _HASHES)

Failure = ocsp.OCSPResponseStatus
"""The error status of a response without certificate status, as RFC 6960 §4.2.1 spells it."""


class OcspRefused(Exception):
    """The request cannot be answered with a certificate status; *failure* is the error status for the client."""

    def __init__(self, failure: Failure, detail: str) -> None:
        super().__init__(detail)
        self.failure = failure


@dataclass(frozen=True, slots=True)
class OcspRequest:
    """The one certificate in the request, and the nonce to echo."""

    algorithm: hashes.HashAlgorithm
    bare: bool
    """The algorithm is named without parameters (`provisioning.ca.ocsp_fields.is_bare`)."""
    issuer_name_hash: bytes
    issuer_key_hash: bytes
    serial: int
    nonce: x509.OCSPNonce | None


@dataclass(frozen=True, slots=True)
class Revoked:
    """Revoked: since when and why."""

    revoked_at: datetime
    reason: RevocationReason


@dataclass(frozen=True, slots=True)
class Good:
    """Issued, and not revoked."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """Never issued by this CA."""


CertificateStatus = Good | Revoked | Unknown


def read_request(der: bytes) -> OcspRequest:
    """Return the parsed request; raise `OcspRefused`."""
    try:
        request = ocsp.load_der_ocsp_request(der)
        if request.serial_number < 0:  # RFC 5280 §4.1.2.2: none is negative. Zero is odd, and was never issued here.
            raise OcspRefused(Failure.MALFORMED_REQUEST, "a negative serial number")
        nonce = _nonce(request.extensions)
        if _CRITICAL in der and _asks_critically(der):
            raise OcspRefused(Failure.MALFORMED_REQUEST, "unknown critical extension of the question")
        algorithm = request.hash_algorithm
        if algorithm.name not in _NAMES:
            raise OcspRefused(Failure.UNAUTHORIZED, "no CA of ours is named by this hash algorithm")
        return OcspRequest(
            algorithm,
            ocsp_fields.is_bare(der, algorithm.name, request.issuer_name_hash),
            request.issuer_name_hash,
            request.issuer_key_hash,
            request.serial_number,
            nonce,
        )
    except NotImplementedError as error:
        raise OcspRefused(Failure.UNAUTHORIZED, "more than one certificate in a request") from error
    except UnsupportedAlgorithm as error:
        # A CertID with a hash algorithm that we do not compute cannot name one of our CAs.
        raise OcspRefused(Failure.UNAUTHORIZED, "unknown hash algorithm") from error
    except (ValueError, x509.DuplicateExtension) as error:
        raise OcspRefused(Failure.MALFORMED_REQUEST, str(error)) from error


def _nonce(extensions: x509.Extensions) -> x509.OCSPNonce | None:
    found = None
    for extension in extensions:
        match extension.value:
            case x509.OCSPNonce() as nonce:
                if len(nonce.nonce) not in _NONCE_OCTETS:
                    raise OcspRefused(Failure.MALFORMED_REQUEST, f"a nonce of {len(nonce.nonce)} octets")
                found = nonce
            case x509.OCSPAcceptableResponses():
                pass  # Ours is the basic response, which every client must accept (RFC 6960 §4.4.3).
            case _ if extension.critical:  # RFC 6960 §4.4: ignored unless critical.
                raise OcspRefused(Failure.MALFORMED_REQUEST, f"unknown critical extension {extension.oid}")
    return found


def _asks_critically(der: bytes) -> bool:
    """Whether the one Request of *der*, which the library has parsed, has a critical singleRequestExtension.

    None is known here, and the library does not show them.
    """
    tbs = next(children(der))
    requests = next(each for each in children(tbs) if each.startswith(SEQUENCE))  # Behind version and requestorName.
    _, *tagged = children(next(children(requests)))
    return any(_CRITICAL in children(each) for extensions in tagged for each in children(next(children(extensions))))


def failure_response(failure: Failure) -> bytes:
    """Return a response without certificate status."""
    return ocsp.OCSPResponseBuilder.build_unsuccessful(failure).public_bytes(Encoding.DER)


def issuer_hashes(issuer: x509.Certificate) -> Sequence[tuple[str, bytes, bytes]]:
    """Return how CertIDs name *issuer*: hash algorithm, hash of its name, hash of its key."""
    return [
        (algorithm.name, _digest(algorithm, issuer.subject.public_bytes()), _key_hash(issuer, algorithm))
        for algorithm in _HASHES
    ]


def _digest(algorithm: hashes.HashAlgorithm, content: bytes) -> bytes:
    digest = hashes.Hash(algorithm)
    digest.update(content)
    return digest.finalize()


def _key_hash(issuer: x509.Certificate, algorithm: _CertIdHash) -> bytes:
    """Return the hash of the public key's bits alone, which the library gives only as part of a request."""
    return ocsp.OCSPRequestBuilder().add_certificate(issuer, issuer, algorithm).build().issuer_key_hash


class OcspSigner:
    """A delegated signer: its certificate and its key."""

    def __init__(self, certificate: x509.Certificate, key: PrivateKey) -> None:
        """Raise ValueError if *key* is not the key of *certificate*."""
        if key.public_key() != certificate.public_key():
            raise ValueError("the private key does not belong to the OCSP signer's certificate")
        self.certificate: Final = certificate
        self.not_before: Final = certificate.not_valid_before_utc
        self.not_after: Final = certificate.not_valid_after_utc
        self._signature = signer(key)
        self._algorithm = signature_algorithm(key)
        self._certificates = ocsp_fields.signers_certificate(certificate.public_bytes(Encoding.DER))
        key_hash = _key_hash(certificate, hashes.SHA1())  # noqa: S303 - RFC 6960 §4.2.1: KeyHash is SHA-1.
        self._responder = ocsp_fields.responder(key_hash)

    def sign(
        self, request: OcspRequest, status: CertificateStatus, this_update: datetime, next_update: datetime
    ) -> bytes:
        """Return the response that gives *status*, in DER."""
        fields = ocsp_fields.joined(
            responder=self._responder,
            produced_at=this_update,
            certificate_id=ocsp_fields.certificate_id_head(
                request.algorithm.name, request.issuer_name_hash, request.issuer_key_hash, bare=request.bare
            ),
            serial=request.serial,
            status=_encoded(status),
            this_update=this_update,
            next_update=next_update,
            nonce=request.nonce,
        )
        return ocsp_fields.response(fields, self._algorithm, self._signature(fields), self._certificates)


def _encoded(status: CertificateStatus) -> bytes:
    match status:
        case Revoked(revoked_at=at, reason=reason):
            # RFC 5280 §5.3.1, as in a CRL: absent rather than "unspecified".
            return ocsp_fields.revoked(at, REASON_CODES.get(reason))
        case Good():
            return ocsp_fields.GOOD
        case Unknown():
            return ocsp_fields.UNKNOWN
