"""CRLs and OCSP answers signed again with SHA-1, which the library no longer signs with."""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from device_sim.attack.der import content, element, elements

_SEQUENCE, _BIT_STRING, _OCTET_STRING, _EXPLICIT_0 = 0x30, 0x03, 0x04, 0xA0
_ECDSA_WITH_SHA1 = bytes.fromhex("300906072a8648ce3d0401")


def crl_over_sha1(der: bytes, key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the CRL *der*, which states its version, signed again by *key* (RFC 5280 §5.1)."""
    version, _, *rest = elements(content(x509.load_der_x509_crl(der).tbs_certlist_bytes))
    return _signed(element(_SEQUENCE, b"".join([version, _ECDSA_WITH_SHA1, *rest])), key)


def ocsp_over_sha1(der: bytes, key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the successful answer *der*, without the certificates in it, signed again by *key* (RFC 6960 §4.2.1)."""
    status, response = elements(content(der))
    kind, basic = elements(content(content(response)))
    signed, *_ = elements(content(content(basic)))
    again = element(_SEQUENCE, kind + element(_OCTET_STRING, _signed(signed, key)))
    return element(_SEQUENCE, status + element(_EXPLICIT_0, again))


def _signed(content_: bytes, key: ec.EllipticCurvePrivateKey) -> bytes:
    signature = key.sign(content_, ec.ECDSA(hashes.SHA1()))  # noqa: S303 - what must not be believed
    return element(_SEQUENCE, content_ + _ECDSA_WITH_SHA1 + element(_BIT_STRING, b"\0" + signature))
