"""What the broker sends with its certificate, so that a device which knows an older root has a path to it."""

from __future__ import annotations

from datetime import timedelta

from cryptography import x509

from broker.credentials.own_path import path_to_send
from provisioning.ca.ceremony import (
    CertificateAuthority,
    IssuingCaRequest,
    RootSuccession,
    found_authority,
    sign_issuing_ca,
    succeed_root,
)
from provisioning.pki.keys import PrivateKey, generate_key
from tests.support.requests import NOON

YEAR = timedelta(days=365)


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

    assert path_to_send(issuing[2], told) == [own[1][0], own[0][0]], "by the second, and for that by the first"
    assert path_to_send(issuing[1], told) == [own[0][0]]
    assert path_to_send(issuing[0], told) == []
    assert path_to_send(issuing[2], told[:6]) == [], "none that is not there"
