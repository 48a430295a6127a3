"""What a server sends with its certificate, so that a device which knows an older root has a path to it."""

from __future__ import annotations

from datetime import timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from provisioning.ca.ceremony import (
    CertificateAuthority,
    IssuingCaRequest,
    RootSuccession,
    found_authority,
    sign_issuing_ca,
    succeed_root,
)
from provisioning.pki.keys import PrivateKey, generate_key
from provisioning.pki.path_to_send import path_to_send
from tests.support.requests import NOON

YEAR = timedelta(days=365)
KEYS = {each: generate_key() for each in "abcde"}
"""Of roots, the oldest first."""


def test_older_roots_vouch_for_the_newer_ones_and_none_for_an_older_one() -> None:
    first = found_authority("fleet.internal", NOON, (1 << 100, 2 << 100))
    roots = [CertificateAuthority(first.root_ca.certificate, first.root_ca.key)]
    successions: list[RootSuccession] = []
    for number in (1, 2):
        key: PrivateKey = generate_key()
        serials = (number * 10 << 100, number * 11 << 100, number * 12 << 100)
        successions.append(succeed_root(roots[-1], key, "fleet.internal", serials, NOON + number * YEAR))
        roots.append(CertificateAuthority(successions[-1].new_root, key))
    names = [
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"Issuing CA {number}")])
        for number in range(len(roots))
    ]
    issuing = [
        sign_issuing_ca(root, IssuingCaRequest(name, generate_key().public_key()), 99 + number << 100, NOON + 2 * YEAR)
        for number, (root, name) in enumerate(zip(roots, names, strict=True))
    ]
    own = [(each.new_with_old, each.old_with_new) for each in successions]
    told = [*(each.certificate for each in roots), *issuing, *own[0], *own[1]]

    now = NOON + 3 * YEAR
    assert path_to_send(issuing[2], told, now) == [own[1][0], own[0][0]], "by the second, and for that by the first"
    assert path_to_send(issuing[1], told, now) == [own[0][0]]
    assert path_to_send(issuing[0], told, now) == []
    assert path_to_send(issuing[2], told[:6], now) == [], "none that is not there"


def vouched(signer: str, subject: str, begins: int, years: int = 10) -> x509.Certificate:
    """Return what the root *signer* says of the key of the root *subject*: for itself if they are the same."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "root")])
    begin = NOON + begins * YEAR
    builder = x509.CertificateBuilder(name, name, KEYS[subject].public_key(), 1, begin, begin + years * YEAR)
    return builder.sign(KEYS[signer], hashes.SHA256())


def test_of_several_that_vouch_for_a_root_one_is_sent_that_leads_to_all_older_ones() -> None:
    roots = [vouched(each, each, number) for number, each in enumerate(KEYS)]
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "issuing")])
    builder = x509.CertificateBuilder(roots[-1].subject, name, KEYS["a"].public_key(), 9, NOON, NOON + 10 * YEAR)
    issuing = builder.sign(KEYS["e"], hashes.SHA256())
    now = NOON + 6 * YEAR

    def sent(*between: x509.Certificate) -> list[x509.Certificate]:
        return path_to_send(issuing, [*between, *roots], now)

    d, skips, ended, later = vouched("d", "e", 4), vouched("a", "e", 4), vouched("d", "e", 4, 1), vouched("d", "e", 7)
    c, b, a = vouched("c", "d", 3), vouched("b", "c", 2), vouched("a", "b", 1)
    assert sent(skips, d, c) == [d, c], "whoever knows the root between is served, too"
    assert sent(skips) == [skips], "better than none"
    assert sent(ended, d) == [d]
    assert sent(ended) == []
    assert sent(later, d) == [d]
    assert sent(later) == [later], "the clock here may be behind"
    assert sent(vouched("e", "d", 4), d, vouched("d", "c", 3), c) == [d, c], "none for an older root"
    assert sent(a, b, c, d) == [d, c, b], "a bound"
    assert sent(d, vouched("e", "e", 4), c) == [d, c], "the same root once more is no detour"
