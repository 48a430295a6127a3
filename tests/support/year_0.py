"""What is dated in the first years: OpenSSL knows the year 0, and Python has no `datetime` for it."""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from provisioning.ca.der import BIT_STRING, SEQUENCE, children, element
from provisioning.pki.keys import PrivateKey

YEAR_0 = "00000101000000Z"
FIRST_SECOND = "00010101000000Z"
"""Of all that there is a `datetime` for."""
SAID = r"year (0 is out of range|must be in 1\.\.9999, not 0)"
"""What Python says of the year 0, to 3.13 and from 3.14 on."""
_VALIDITY = 4
_THIS_UPDATE = 3
_GENERALIZED_TIME = b"\x18"


def since_year_0(certificate: x509.Certificate, key: PrivateKey) -> x509.Certificate:
    """Return *certificate* with that begin, signed again by *key*, an EC key."""
    return valid_in(certificate, key, YEAR_0)


def valid_in(certificate: x509.Certificate, key: PrivateKey, begin: str, end: str | None = None) -> x509.Certificate:
    """Return *certificate* with that validity (its own end, if none is given), signed again by *key*, an EC key."""
    tbs, algorithm, _ = children(certificate.public_bytes(Encoding.DER))
    fields = [*children(tbs)]
    _, own = children(fields[_VALIDITY])
    fields[_VALIDITY] = element(SEQUENCE, _time(begin) + (own if end is None else _time(end)))
    return x509.load_der_x509_certificate(_signed(element(SEQUENCE, b"".join(fields)), algorithm, key))


def dated_list(der: bytes, key: PrivateKey, this_update: str, next_update: str) -> bytes:
    """Return the list *der* of revoked certificates with these dates, signed again by *key*, an EC key."""
    tbs, algorithm, _ = children(der)
    fields = [*children(tbs)]
    fields[_THIS_UPDATE : _THIS_UPDATE + 2] = [_time(this_update), _time(next_update)]
    return _signed(element(SEQUENCE, b"".join(fields)), algorithm, key)


def _time(text: str) -> bytes:
    return element(_GENERALIZED_TIME, text.encode())


def _signed(tbs: bytes, algorithm: bytes, key: PrivateKey) -> bytes:
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    signature = element(BIT_STRING, b"\0" + key.sign(tbs, ec.ECDSA(hashes.SHA256())))
    return element(SEQUENCE, tbs + algorithm + signature)
