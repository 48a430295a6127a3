"""Keys that may not be certified, each with what makes it so; badkeys and openssl say the same of them."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import badkeys
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from provisioning.ca.csr import RequestRefused, verify_csr
from provisioning.ca.key_blocklist import RECORD, InvalidBlocklist, KeyBlocklist, digest_of
from provisioning.ca.key_policy import _ROCA_RESIDUES, _SMALL_PRIMES_PRODUCT, KeyPolicy, WeakKey
from provisioning.errors import Code
from provisioning.pki.keys import PrivateKey
from tests.support import weak_keys
from tests.support.openssl import openssl
from tests.support.requests import csr_der
from tests.support.slow_keys import dsa_key, rsa_key

POLICY = KeyPolicy()
CHECKS = (POLICY.check, POLICY.check_shown)
"""Of a key that is to be certified, and of one that was shown."""
SUITE = ("fermat", "roca", "rsapoly", "smallfactors")
"""The judge's checks of what an RSA modulus is made of."""

ORDINARY: list[PrivateKey] = [
    ec.generate_private_key(ec.SECP256R1()),
    ec.generate_private_key(ec.SECP384R1()),
    ed25519.Ed25519PrivateKey.generate(),
    rsa_key(),
    rsa_key(3072),
]


@pytest.mark.parametrize("key", ORDINARY, ids=["P-256", "P-384", "Ed25519", "RSA-2048", "RSA-3072"])
def test_an_ordinary_key_passes(key: PrivateKey) -> None:
    POLICY.check(key.public_key())


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (ec.generate_private_key(ec.SECP521R1()), "curve secp521r1 is not accepted: use P-256 or P-384"),
        (ec.generate_private_key(ec.SECP256K1()), "curve secp256k1 is not accepted: use P-256 or P-384"),
        (rsa_key(1024), "the RSA key has 1024 bits: use 2048"),
        (rsa_key(exponent=3), "the RSA exponent is 3: use 65537"),
        (ed448.Ed448PrivateKey.generate(), "this kind of key is not accepted: use ECDSA"),
        (dsa_key(1024), "this kind of key is not accepted: use ECDSA"),
    ],
    ids=["P-521", "secp256k1", "RSA-1024", "exponent 3", "Ed448", "DSA"],
)
def test_another_kind_or_size_is_refused_with_the_remedy(key: PrivateKey, words: str) -> None:
    with pytest.raises(WeakKey, match=words):
        POLICY.check(key.public_key())


@pytest.mark.parametrize(
    ("make", "judge", "words"),
    [
        (weak_keys.close_primes, "fermat", "CVE-2022-26320"),
        (weak_keys.distant_primes, "fermat", "CVE-2022-26320"),
        (weak_keys.roca, "roca", "CVE-2017-15361"),
        (weak_keys.sparse, "rsapoly", "not random"),
        (weak_keys.small_factor, "smallfactors", "small factor"),
    ],
    ids=["close primes", "close primes in many rounds", "ROCA", "sparse", "small factor"],
)
def test_a_modulus_that_can_be_factored_is_refused(
    make: Callable[[], rsa.RSAPrivateKey], judge: str, words: str
) -> None:
    key = make().public_key()
    assert list(badkeys.checkrsa(key.public_numbers().n, checks=SUITE)) == [judge]
    for check in CHECKS:
        with pytest.raises(WeakKey, match=words):
            check(key)


def test_few_roots_are_taken_of_a_stranger_s_modulus() -> None:
    """A hundred of them, of 8192 bits, took two thirds of the time for his whole request."""
    key = rsa.RSAPublicNumbers(65537, weak_keys.number_without_small_factors(2048)).public_key()
    roots = 0

    def count(_frame: FrameType, event: str, called: object) -> None:
        nonlocal roots
        roots += event == "c_call" and called is math.isqrt

    sys.setprofile(count)
    try:
        POLICY.check(key)
    finally:
        sys.setprofile(None)
    assert 0 < roots < 40


def test_an_even_modulus_is_refused() -> None:
    odd = weak_keys.number_without_small_factors(2047)
    with pytest.raises(WeakKey, match="small factor"):
        POLICY.check(rsa.RSAPublicNumbers(65537, 2 * odd).public_key())


@pytest.mark.parametrize(("bits", "passes"), [(2040, False), (2047, False), (2052, False), (8192, True), (8200, False)])
def test_the_length_of_a_modulus_has_two_bounds_and_is_a_multiple_of_8(bits: int, passes: bool) -> None:
    key = rsa.RSAPublicNumbers(65537, weak_keys.number_without_small_factors(bits)).public_key()
    if passes:
        POLICY.check(key)
        return
    with pytest.raises(WeakKey, match=f"has {bits} bits: use 2048 to 8192, a multiple of 8"):
        POLICY.check(key)


@pytest.mark.parametrize(
    ("exponent", "passes"), [(65535, False), (65539, True), ((1 << 32) - 1, True), ((1 << 32) + 1, False)]
)
def test_an_exponent_has_two_bounds(exponent: int, passes: bool) -> None:
    key = rsa.RSAPublicNumbers(exponent, weak_keys.number_without_small_factors(2048)).public_key()
    if passes:
        POLICY.check(key)
        return
    with pytest.raises(WeakKey, match="the RSA exponent is"):
        POLICY.check(key)


def test_the_judge_finds_nothing_in_ordinary_moduli() -> None:
    for key in ORDINARY:
        if isinstance(key, rsa.RSAPrivateKey):
            assert badkeys.checkrsa(key.public_key().public_numbers().n, checks=SUITE) == {}


def test_an_exponent_that_hides_a_small_private_one_is_refused() -> None:
    ordinary = rsa_key().public_key().public_numbers()
    with pytest.raises(WeakKey, match="longer than 32 bits"):
        POLICY.check(rsa.RSAPublicNumbers((1 << 255) + 1, ordinary.n).public_key())


def test_every_prime_below_752_is_looked_for() -> None:
    for prime in (3, 5, 7, 743, 751):
        assert math.gcd(_SMALL_PRIMES_PRODUCT, prime) == prime


def test_roca_is_told_by_primes_that_most_moduli_fail() -> None:
    assert (len(_ROCA_RESIDUES), max(_ROCA_RESIDUES)) == (38, 167)
    chance = math.prod(len(residues) / (prime - 1) for prime, residues in _ROCA_RESIDUES.items())
    assert chance < 2**-26


def small_order_points() -> list[bytes]:
    """Return every encoding of the eight points, with the coordinates that exceed the prime too."""
    prime, order_8 = 2**255 - 19, 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
    values = (0, 1, prime - 1, prime, prime + 1, order_8, prime - order_8)
    return [(value | sign << 255).to_bytes(32, "little") for value in values for sign in (0, 1)]


@pytest.mark.parametrize("point", small_order_points(), ids=bytes.hex)
def test_a_point_of_small_order_is_refused(point: bytes) -> None:
    for check in CHECKS:
        with pytest.raises(WeakKey, match="small order"):
            check(ed25519.Ed25519PublicKey.from_public_bytes(point))


@pytest.mark.parametrize(
    "key",
    [*ORDINARY, ec.generate_private_key(ec.SECP521R1()), rsa_key(1024), rsa_key(exponent=3), dsa_key(1024)],
    ids=["P-256", "P-384", "Ed25519", "RSA-2048", "RSA-3072", "P-521", "RSA-1024", "exponent 3", "DSA"],
)
def test_another_ca_s_device_may_have_a_key_that_this_one_would_not_certify(key: PrivateKey) -> None:
    POLICY.check_shown(key.public_key())


def test_anybody_can_prove_possession_of_a_point_of_small_order_and_is_refused(tmp_path: Path) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    identity = b"\x01" + bytes(31)
    signature = x509.load_der_x509_csr(csr_der(key)).signature
    forged = (
        csr_der(key).replace(key.public_key().public_bytes_raw(), identity).replace(signature, identity + bytes(32))
    )
    (tmp_path / "forged.der").write_bytes(forged)
    openssl("req", "-verify", "-inform", "DER", "-in", tmp_path / "forged.der", "-noout")  # Its signature is good.
    with pytest.raises(RequestRefused, match="small order") as caught:
        verify_csr(forged)
    assert caught.value.code is Code.CSR_KEY


def blocklist_of(*keys: PublicKeyTypes) -> bytes:
    return b"".join(digest + b"\x02" for digest in sorted(map(digest_of, keys)))


def judged_by_badkeys(directory: Path, records: bytes, key: PublicKeyTypes) -> bool:
    """Return whether the badkeys program finds *key* in a list of *records*."""
    cache = directory / "badkeys"
    cache.mkdir(exist_ok=True)
    (cache / "blocklist.dat").write_bytes(records)
    meta = {"bkformat": 0, "blocklists": [{"id": 2, "name": "test", "repo": "r", "path": "p"}]}
    (cache / "badkeysdata.json").write_text(json.dumps(meta))
    (directory / "key.pem").write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    program = [sys.executable, "-c", "from badkeys.runcli import runcli; runcli()"]
    program += ["-c", "blocklist", str(directory / "key.pem")]
    environment = os.environ | {"XDG_CACHE_HOME": str(directory)}
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert not done.stderr, done.stderr
    return "blocklist/test" in done.stdout


@pytest.mark.parametrize("place", range(4), ids=["P-256", "P-384", "Ed25519", "RSA-2048"])
def test_a_published_key_is_refused(place: int, tmp_path: Path) -> None:
    keys = [key.public_key() for key in ORDINARY]
    records = blocklist_of(*keys[:4])
    assert judged_by_badkeys(tmp_path, records, keys[place])
    policy = KeyPolicy(KeyBlocklist(records))
    with pytest.raises(WeakKey, match="was published"):
        policy.check(keys[place])
    with pytest.raises(WeakKey, match="was published"):  # Also when its certificate was issued before that.
        policy.check_shown(keys[place])
    policy.check_shown(keys[4])
    policy.check(keys[4])  # The one that is not in the list.


PRINTED: list[tuple[str, PrivateKey]] = [
    (
        "RFC 9500",
        ec.derive_private_key(0xE6CB5BDD80AA45AE9C95E8C15476679FFEC953C16851E711E743939589C64FC1, ec.SECP256R1()),
    ),
    (
        "RFC 6979",
        ec.derive_private_key(0xC9AFA9D845BA75166B5C215767B1D6934E50C3DB36E89B127B8A622B120F6721, ec.SECP256R1()),
    ),
    (
        "RFC 8032",
        ed25519.Ed25519PrivateKey.from_private_bytes(
            bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
        ),
    ),
]
"""Private keys, as anybody can read them."""


@pytest.mark.parametrize(("document", "key"), PRINTED, ids=[document for document, _ in PRINTED])
def test_a_key_that_is_printed_in_an_rfc_is_refused_without_any_list(document: str, key: PrivateKey) -> None:
    for check in CHECKS:
        with pytest.raises(WeakKey, match=f"printed in {document}, so everybody has it"):
            check(key.public_key())


@pytest.mark.parametrize("cut", range(5))
def test_a_list_is_searched_to_both_ends(cut: int) -> None:
    keys = sorted((ec.generate_private_key(ec.SECP256R1()).public_key() for _ in range(5)), key=digest_of)
    blocklist = KeyBlocklist(blocklist_of(*keys[:cut], *keys[cut + 1 :]))
    assert [key in blocklist for key in keys] == [place != cut for place in range(5)]


@pytest.mark.parametrize(
    ("records", "words"),
    [
        (bytes(RECORD + 1), "not whole records"),
        (b"\x01" * RECORD + bytes(RECORD), "record 1 is out of order"),
    ],
    ids=["cut off", "not sorted"],
)
def test_a_list_that_cannot_be_searched_is_refused(records: bytes, words: str) -> None:
    with pytest.raises(InvalidBlocklist, match=words):
        KeyBlocklist(records)
