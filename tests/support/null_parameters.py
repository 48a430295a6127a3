"""A certificate or a CRL with the NULL in both its signature algorithms that tpm2-openssl writes."""

from __future__ import annotations

from device_sim.attack.der import content, element, elements

_RIGHT = bytes.fromhex("300a06082a8648ce3d040302")
_NULL = bytes.fromhex("300c06082a8648ce3d0403020500")


def with_null(der: bytes) -> bytes:
    """Return *der*, signed by ECDSA with SHA-256, with NULL for its parameters. The signature is not made anew."""
    signed, algorithm, signature = elements(content(der))
    assert algorithm == _RIGHT
    return element(0x30, element(0x30, content(signed).replace(_RIGHT, _NULL, 1)) + _NULL + signature)
