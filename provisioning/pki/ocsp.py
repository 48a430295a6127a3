"""OCSP as a relying party uses it: a request about one certificate, and a response that is accepted or refused.

Theory
------
A response is accepted if it is about the requested certificate, signed by the certificate's issuer or by a responder
that this issuer certified for OCSP signing (RFC 6960 §4.2.2.2), and current. A nonce ties it to the request; responders
that answer from a cache omit it, which is allowed: then the dates tell how old the response is.

Rules
-----
1. What does not match is refused, never read as "good". Of two statuses of one certificate, the revocation counts.
   Whether the responder's own certificate is revoked, the caller asks (`Answer.signer`).
2. No I/O and no clock.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID

from provisioning.pki.extension import UNUSABLE, extension
from provisioning.pki.issued_by import is_issued_by
from provisioning.pki.keys import key_identifier
from provisioning.pki.panic import NoPanic
from provisioning.pki.revocation import CertificateKey
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.program.moments import shown_time

CLOCK_TOLERANCE = timedelta(minutes=5)
"""How far ahead a responder's clock may be."""
_WITHOUT_NEXT_UPDATE = timedelta(minutes=5)
"""How long a response without nextUpdate is valid."""
_NONCE_BYTES = 32
_MOST_CERTIFICATES = 16
"""In a response: the key of each is read before anything is verified, up to a millisecond each."""
_WEAK_HASHES = frozenset({"sha1", "md5"})


class OcspRefused(Exception):
    """The answer cannot be used; the text says why."""


@dataclass(frozen=True, slots=True)
class Question:
    """One request, in DER, and the nonce in it; empty: none."""

    der: bytes
    nonce: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """The responder's status of the certificate. *known* is false if the status is "unknown"."""

    known: bool
    reason: RevocationReason | None
    """Why it is revoked; None: it is not revoked."""
    revoked_at: datetime | None
    """Since when; None: it is not, or that cannot be read."""
    this_update: datetime
    fresh_until: datetime
    signer: CertificateKey | None = None
    """The certificate of the responder that has signed it; None: the issuer has. Whether it is revoked is not known."""

    def gives_way_to(self, other: Answer) -> bool:
        """Whether *other* is newer; of two of one time, which some responders round to the hour, a revocation is."""
        if self.this_update == other.this_update:
            return self.reason is None and other.reason is not None
        return self.this_update < other.this_update


def ask(serial: int, issuer: x509.Certificate, *, nonce: bool = True) -> Question:
    """Return the request for the status of the certificate with that serial number, issued by *issuer*.

    Use no *nonce* if the response is for others: our nonce would tell them nothing.
    """
    chosen = secrets.token_bytes(_NONCE_BYTES) if nonce else b""
    issuer_key_hash = key_identifier(issuer.public_key())
    builder = ocsp.OCSPRequestBuilder().add_certificate_by_hash(
        _name_hash(issuer),
        issuer_key_hash,
        serial,
        hashes.SHA1(),  # noqa: S303 - it names the issuer: RFC 5019 §2.1.1 requires it, old responders know no other
    )
    if nonce:
        builder = builder.add_extension(x509.OCSPNonce(chosen), critical=False)
    return Question(builder.build().public_bytes(Encoding.DER), chosen)


def responders(certificate: x509.Certificate) -> tuple[str, ...]:
    """Return the URLs of the OCSP responders that *certificate* names."""
    return tuple(
        each.access_location.value
        for each in extension(certificate, x509.AuthorityInformationAccess) or ()
        if each.access_method == AuthorityInformationAccessOID.OCSP
        and isinstance(each.access_location, x509.UniformResourceIdentifier)
    )


def read_answer(der: bytes, question: Question, serial: int, issuer: x509.Certificate, now: datetime) -> Answer:
    """Return the status in the response *der* at *now*; raise `OcspRefused` if it cannot be accepted.

    It is that of the certificate with the number *serial*, issued by *issuer*.
    """
    try:
        with NoPanic():
            response = ocsp.load_der_ocsp_response(der)
            if response.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
                raise OcspRefused(f"the responder says {response.response_status.name}")
            single = _about(response, serial, issuer)
            _check_nonce(response, question)
            signer = _signer(response, issuer, now)
            _check_signature(response, signer)
            this_update, next_update = single.this_update_utc, single.next_update_utc  # Of the year 0: ValueError.
    except UNUSABLE as error:  # Over plain HTTP anybody may answer.
        raise OcspRefused(f"not an OCSP response: {error}") from error
    if this_update > now + CLOCK_TOLERANCE:  # First: nothing can be added to the last second of the year 9999.
        raise OcspRefused(f"the answer is of {shown_time(this_update)}, which is yet to come")
    fresh_until = next_update or this_update + _WITHOUT_NEXT_UPDATE
    fresh_until = min(fresh_until, signer.not_valid_after_utc)  # The signer is not accepted for longer.
    if fresh_until < now:
        raise OcspRefused(f"the answer ended on {shown_time(fresh_until)}")
    reason = None
    if single.certificate_status is ocsp.OCSPCertStatus.REVOKED:
        flag = _flag_of(single)
        reason = RevocationReason.UNSPECIFIED
        if flag is not None and flag is not x509.ReasonFlags.remove_from_crl:
            reason = RevocationReason(flag.value)
    known = single.certificate_status is not ocsp.OCSPCertStatus.UNKNOWN
    by = None if signer is issuer else (key_identifier(issuer.public_key()), signer.serial_number)
    return Answer(known, reason, _revoked_at(single), this_update, fresh_until, by)


def _flag_of(single: ocsp.OCSPSingleResponse) -> x509.ReasonFlags | None:
    """Return the reason of a revocation; None if there is none, or the code is not in RFC 5280 §5.3.1."""
    try:
        return single.revocation_reason
    except ValueError:  # The revocation is signed, whatever is wrong with the reason.
        return None


def _revoked_at(single: ocsp.OCSPSingleResponse) -> datetime | None:
    """Return since when it is revoked; None if it is not, or the time cannot be read (of the year 0)."""
    try:
        return single.revocation_time_utc
    except ValueError:  # As above.
        return None


def _about(response: ocsp.OCSPResponse, serial: int, issuer: x509.Certificate) -> ocsp.OCSPSingleResponse:
    """Return what it says of the certificate; if that is several things, that it is revoked."""
    name_hash, key_hash = _name_hash(issuer), key_identifier(issuer.public_key())
    about = None
    for single in response.responses:
        if single.serial_number != serial or not isinstance(single.hash_algorithm, hashes.SHA1):
            continue
        if single.issuer_key_hash != key_hash or single.issuer_name_hash != name_hash:
            continue
        if single.certificate_status is ocsp.OCSPCertStatus.REVOKED:
            return single
        about = about or single
    if about is None:
        raise OcspRefused("the answer is about another certificate")
    return about


def _name_hash(issuer: x509.Certificate) -> bytes:
    name_hash = hashes.Hash(hashes.SHA1())  # noqa: S303 - see `ask`
    name_hash.update(issuer.subject.public_bytes())
    return name_hash.finalize()


def _check_nonce(response: ocsp.OCSPResponse, question: Question) -> None:
    try:
        nonce = response.extensions.get_extension_for_class(x509.OCSPNonce).value.nonce
    except x509.ExtensionNotFound:
        return
    if nonce != question.nonce:
        raise OcspRefused("the answer is to another question: its nonce is not ours")


def _signer(response: ocsp.OCSPResponse, issuer: x509.Certificate, now: datetime) -> x509.Certificate:
    if response.responder_key_hash is not None:
        is_issuer = response.responder_key_hash == key_identifier(issuer.public_key())
    else:
        is_issuer = response.responder_name == issuer.subject
    if is_issuer:
        return issuer
    candidates = response.certificates
    if len(candidates) > _MOST_CERTIFICATES:
        raise OcspRefused(f"it comes with {len(candidates)} certificates; {_MOST_CERTIFICATES} may")
    for candidate in candidates:
        if response.responder_key_hash is not None:
            named = response.responder_key_hash == key_identifier(candidate.public_key())
        else:
            named = response.responder_name == candidate.subject
        if named and _may_answer(candidate, issuer, now):
            return candidate
    raise OcspRefused("the responder is neither the issuer nor one that it certified for OCSP signing, in date")


def _may_answer(candidate: x509.Certificate, issuer: x509.Certificate, now: datetime) -> bool:
    purposes = extension(candidate, x509.ExtendedKeyUsage) or ()
    in_date = candidate.not_valid_before_utc <= now <= candidate.not_valid_after_utc
    return in_date and ExtendedKeyUsageOID.OCSP_SIGNING in purposes and is_issued_by(candidate, issuer)


def _check_signature(response: ocsp.OCSPResponse, signer: x509.Certificate) -> None:
    key, algorithm = signer.public_key(), response.signature_hash_algorithm
    signed = response.tbs_response_bytes
    if algorithm is not None and algorithm.name in _WEAK_HASHES:
        raise OcspRefused(f"signed with the weak hash {algorithm.name}")
    try:
        match key:
            case ec.EllipticCurvePublicKey() if algorithm is not None:
                key.verify(response.signature, signed, ec.ECDSA(algorithm))
            case rsa.RSAPublicKey() if algorithm is not None:
                key.verify(response.signature, signed, padding.PKCS1v15(), algorithm)
            case ed25519.Ed25519PublicKey() | ed448.Ed448PublicKey():
                key.verify(response.signature, signed)
            case _:
                raise OcspRefused("the signature is not one of the responder's kind of key")
    except InvalidSignature:
        raise OcspRefused("the signature is not that of the responder") from None
