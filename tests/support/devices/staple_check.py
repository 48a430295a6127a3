"""How a device checks the OCSP staple that it asked for, by hand: all but what its flaw leaves out.

Rules
-----
1. Nothing here is the product's own check (`provisioning.pki.ocsp`): the stand's staples are read by other eyes.
"""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID

from provisioning.pki.stapling import staple_in

_AHEAD = timedelta(minutes=5)


def check_staple(tls: ssl.SSLSocket, ca: x509.Certificate, flaw: str) -> None:
    """Check the staple of the server at the other end of *tls*; raise `ConnectionError` if it is not to be believed."""
    shown = x509.load_der_x509_certificate(tls.getpeercert(binary_form=True) or b"")
    der = staple_in(tls._sslobj)  # type: ignore[attr-defined]  # `ssl` does not hand out staples.
    if not der:
        due = any(isinstance(each.value, x509.TLSFeature) for each in shown.extensions)
        if due and flaw != "staple-may-be-missing":
            raise ConnectionError("the server staples nothing, and its certificate says that it must")
        return
    response = ocsp.load_der_ocsp_response(der)
    now = datetime.now(UTC)
    until = response.next_update_utc
    in_date = response.this_update_utc - _AHEAD <= now and (until is None or now <= until)
    if not in_date and flaw != "staple-of-any-time":
        raise ConnectionError("the server's staple is out of date")
    if response.serial_number != shown.serial_number and flaw != "staple-of-any-certificate":
        raise ConnectionError("the server's staple is about another certificate")
    if not _signed(response, ca, flaw):
        raise ConnectionError("the server's staple is not signed by its CA, nor by whom that has authorised")
    if response.certificate_status is not ocsp.OCSPCertStatus.GOOD and flaw != "staple-may-say-revoked":
        raise ConnectionError("the server's certificate is revoked, by its own staple")


def _signed(response: ocsp.OCSPResponse, ca: x509.Certificate, flaw: str) -> bool:
    """Return whether its CA has signed it, or a responder with a certificate for that."""
    signers = [ca]
    for each in response.certificates:
        try:
            each.verify_directly_issued_by(ca)
        except InvalidSignature:
            continue
        usage = each.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        if ExtendedKeyUsageOID.OCSP_SIGNING in usage or flaw == "staple-by-any-certificate":
            signers.append(each)
    return flaw == "staple-by-any-key" or any(_signed_by(response, signer) for signer in signers)


def _signed_by(response: ocsp.OCSPResponse, signer: x509.Certificate) -> bool:
    key, algorithm = signer.public_key(), response.signature_hash_algorithm
    if not isinstance(key, ec.EllipticCurvePublicKey) or algorithm is None:
        return False
    try:
        key.verify(response.signature, response.tbs_response_bytes, ec.ECDSA(algorithm))
    except InvalidSignature:
        return False
    return True
