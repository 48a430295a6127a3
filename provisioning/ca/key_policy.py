"""Which public keys may be certified: types and sizes, and no key whose private half can be found.

Theory
------
A certificate for a key that others can compute is a certificate for everybody. The library only checks that a key is
well formed, so its strength is checked here, for devices and CAs alike. Each check is arithmetic on the public key
and costs less than verifying the request's signature (0.3 ms for RSA-2048):

==================  ==================================================================================================
kind, size          P-256, P-384, Ed25519; RSA of 2048 to 8192 bits with an odd exponent of 17 to 32 bits
small factors       a modulus with a prime factor below 752: damaged, or not a modulus at all
ROCA                CVE-2017-15361: primes of the form k·M + (65537^a mod M) can be found by Coppersmith's method
close primes        Fermat's method, CVE-2022-26320
skewed bits         runs of zeros: the modulus is a polynomial with small coefficients, which can be factored as one
small order         Ed25519 points of the torsion group, for which anybody can sign anything
known keys          those printed in RFCs: `published_in`; and a list of keys that were published: `KeyBlocklist`
==================  ==================================================================================================

Rules
-----
1. `KeyPolicy.check` alone judges a public key: it is called before a certificate is signed for a stranger's key, and
   `KeyPolicy.check_shown` before a presented certificate is accepted, a foreign one or an earlier one of ours.
2. A refusal says what is wrong and what to do, and names no other party.
3. No I/O and no clock.

Does not handle: whether the client holds the key (`provisioning.ca.csr`), and whether another device does
(`provisioning.store.device_keys`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from provisioning.ca.key_blocklist import KeyBlocklist, digest_of
from provisioning.ca.published_keys import published_in

_CURVES: Final = (ec.SECP256R1, ec.SECP384R1)
_LISTED_KINDS: Final = (ec.EllipticCurvePublicKey, ed25519.Ed25519PublicKey, rsa.RSAPublicKey)
_RSA_BITS: Final = range(2048, 8192 + 1, 8)  # CA/Browser Forum BR §6.1.5: at least 2048, a multiple of 8.
# Lower bound: FIPS 186-5 A.1.1. Upper bound: a larger exponent serves only to allow a small private one, which
# Wiener's method finds, and many clients cannot read it.
_RSA_EXPONENTS: Final = range(65537, 1 << 32, 2)
_FERMAT_ROUNDS: Final = 100
_SIEVE: Final = 5040
_MAY_BE_SQUARES: Final = frozenset(root * root % _SIEVE for root in range(_SIEVE))
"""What a square leaves by division: of other numbers 24 in 25 leave something else, and no root has to be taken. For
8192 bits a root takes as long as all that is left of the check of a request, and any stranger may send one."""
_BIT_SHARE: Final = (0.40, 0.60)
"""Share of one bits in a modulus. For 2048 random bits the bounds are nine standard deviations away."""


def _odd_primes(below: int) -> list[int]:
    return [
        candidate
        for candidate in range(3, below, 2)
        if all(candidate % divisor for divisor in range(3, math.isqrt(candidate) + 1, 2))
    ]


_SMALL_PRIMES_PRODUCT: Final = math.prod(_odd_primes(752))

_ROCA_RESIDUES: Final = {
    # Such a modulus is a power of 65537 modulo each of the first 39 primes; any other is with probability 2^-27.
    prime: frozenset(pow(65537, power, prime) for power in range(prime))
    for prime in _odd_primes(168)
}

_ED25519_PRIME: Final = 2**255 - 19
_ORDER_8_Y: Final = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
_SMALL_ORDER_Y: Final = frozenset({0, 1, _ED25519_PRIME - 1, _ORDER_8_Y, _ED25519_PRIME - _ORDER_8_Y})


class WeakKey(ValueError):
    """The key may not be certified; the text says why, and what to do instead."""


@dataclass(frozen=True, slots=True)
class KeyPolicy:
    """The checks, with the list of published keys if there is one."""

    blocklist: KeyBlocklist | None = None

    def check(self, key: object) -> None:
        """Raise `WeakKey` if *key* may not be certified."""
        match key:
            case ec.EllipticCurvePublicKey(curve=curve):
                if not isinstance(curve, _CURVES):
                    raise WeakKey(f"curve {curve.name} is not accepted: use P-256 or P-384")
            case ed25519.Ed25519PublicKey():
                _check_ed25519(key)
            case rsa.RSAPublicKey():
                _check_rsa(key)
            case _:
                raise WeakKey("this kind of key is not accepted: use ECDSA P-256 or P-384, Ed25519, or RSA")
        self._check_published(key)

    def check_shown(self, key: object) -> None:
        """Raise `WeakKey` if others than its holder may have *key*, so that possession proves nothing.

        The key is already certified: by another CA, which may allow other curves and exponents, or by us, before it was
        published.
        """
        match key:
            case ed25519.Ed25519PublicKey():
                _check_ed25519(key)
            case rsa.RSAPublicKey():
                _check_modulus(key.public_numbers().n)
            case _:
                pass
        self._check_published(key)

    def _check_published(self, key: object) -> None:
        if not isinstance(key, _LISTED_KINDS):
            return
        document = published_in(digest_of(key))
        if document is not None:
            raise WeakKey(f"this key is printed in {document}, so everybody has it: make a new key on the device")
        if self.blocklist is not None and key in self.blocklist:
            raise WeakKey("this key was published, so others have it too: make a new key on the device")


def _check_ed25519(key: ed25519.Ed25519PublicKey) -> None:
    y = int.from_bytes(key.public_bytes_raw(), "little") % (1 << 255) % _ED25519_PRIME  # The top bit is x's sign.
    if y in _SMALL_ORDER_Y:
        raise WeakKey(
            "the Ed25519 key is a point of small order, with which anyone can forge signatures: make a new key"
        )


def _check_rsa(key: rsa.RSAPublicKey) -> None:
    if key.key_size not in _RSA_BITS:
        raise WeakKey(f"the RSA key has {key.key_size} bits: use 2048 to 8192, a multiple of 8 (or ECDSA P-256)")
    numbers = key.public_numbers()
    if numbers.e not in _RSA_EXPONENTS:
        shown = numbers.e if numbers.e < _RSA_EXPONENTS.stop else "longer than 32 bits"
        raise WeakKey(f"the RSA exponent is {shown}: use 65537")
    _check_modulus(numbers.n)


def _check_modulus(modulus: int) -> None:
    if modulus % 2 == 0 or math.gcd(modulus, _SMALL_PRIMES_PRODUCT) != 1:
        raise WeakKey(
            "the RSA modulus has a small factor, so the key is corrupt or was generated wrongly: make a new key"
        )
    if _is_roca(modulus):
        raise WeakKey(
            "the RSA key was made by a chip with the ROCA defect (CVE-2017-15361) and can be factored: "
            "make an ECDSA key, or the RSA key outside the chip"
        )
    if _has_close_primes(modulus):
        raise WeakKey(
            "the primes of the RSA modulus are close together (CVE-2022-26320), so it can be factored: "
            "make a new key with another library"
        )
    lowest, highest = _BIT_SHARE
    if not lowest < modulus.bit_count() / modulus.bit_length() < highest:
        raise WeakKey("the bits of the RSA modulus are not random: make a new key with a good random source")


def _is_roca(modulus: int) -> bool:
    return all(modulus % prime in residues for prime, residues in _ROCA_RESIDUES.items())


def _has_close_primes(modulus: int) -> bool:
    """Whether Fermat's method factors *modulus* at once."""
    a = math.isqrt(modulus - 1) + 1
    square = a * a - modulus
    for _ in range(_FERMAT_ROUNDS):
        if square % _SIEVE in _MAY_BE_SQUARES and math.isqrt(square) ** 2 == square:
            return True
        square += 2 * a + 1
        a += 1
    return False
