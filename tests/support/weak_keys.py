"""Keys that look normal but are worthless, generated as the defects did.

The starting point of each prime search is chosen so that it ends there: a search takes a quarter of a second.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric import rsa

EXPONENT = 65537
_PRIMES = [candidate for candidate in range(2, 3000) if all(candidate % n for n in range(2, int(candidate**0.5) + 1))]
_SMALL_PRIMES = math.prod(_PRIMES)


def next_prime(number: int) -> int:
    """Return the next probable prime (Fermat's test to three bases is enough for a test's modulus)."""
    number |= 1
    while not _is_prime(number):
        number += 2
    return number


def _is_prime(number: int) -> bool:
    if math.gcd(number, _SMALL_PRIMES) != 1 or (number - 1) % EXPONENT == 0:
        return False
    return all(pow(base, number - 1, number) == 1 for base in (2, 3, 5))


def close_primes() -> rsa.RSAPrivateKey:
    """CVE-2022-26320: the search for the second prime starts where the first was found."""
    first = next_prime(3 << 1022 | 0x1234775)
    return rsa_key(first, next_prime(first + 1226))


def distant_primes() -> rsa.RSAPrivateKey:
    """Two primes so far apart that Fermat's method finds them in the ninetieth round: (p-q)²/8√n."""
    first = next_prime((3 << 1022 | number_without_small_factors(1000)) + 214)
    return rsa_key(first, next_prime(first + math.isqrt(8 * 90 * first) + 1383))


def number_without_small_factors(bits: int) -> int:
    """Return a number of so many *bits* that may pass for a modulus; nobody knows its factors."""
    source = random.Random(bits)
    number = 1 << (bits - 1) | source.getrandbits(bits - 1) | 1
    while math.gcd(number, _SMALL_PRIMES) != 1:
        number += 2
    return number


def roca() -> rsa.RSAPrivateKey:
    """CVE-2017-15361: k·M + (65537^a mod M), where M is the product of the first primes."""
    product = math.prod(prime for prime in _PRIMES if prime < 168)

    def candidate(source: random.Random) -> int:
        multiple = (3 << 1022) // product + source.getrandbits(700)
        return multiple * product + pow(65537, source.getrandbits(60), product)

    return rsa_key(_first(candidate, 117), _first(candidate, 203))


def sparse() -> rsa.RSAPrivateKey:
    """Only two of each 16 bytes of a prime are random, so that the modulus is a polynomial with small coefficients."""

    def candidate(source: random.Random) -> int:
        return 3 << 1022 | sum(source.getrandbits(16) << 128 * place for place in range(8)) | 1

    return rsa_key(_first(candidate, 82), _first(candidate, 197))


def small_factor() -> rsa.RSAPrivateKey:
    """A composite in place of a prime: 751 times another prime."""
    return rsa_key(751, next_prime((3 << 2046) // 751 + 1095))


def rsa_key(p: int, q: int) -> rsa.RSAPrivateKey:
    """Return the RSA key with these primes."""
    d = pow(EXPONENT, -1, math.lcm(p - 1, q - 1))
    public = rsa.RSAPublicNumbers(EXPONENT, p * q)
    numbers = rsa.RSAPrivateNumbers(p, q, d, d % (p - 1), d % (q - 1), pow(q, -1, p), public)
    return numbers.private_key(unsafe_skip_rsa_key_validation=True)


def _first(candidate: Callable[[random.Random], int], seed: int) -> int:
    source = random.Random(seed)
    while True:
        number = candidate(source)
        if _is_prime(number):
            return number
