"""The identity URI: what is exactly one of ours is read, everything near it is refused."""

from __future__ import annotations

import pytest

from provisioning.pki.identity import Identity, InvalidIdentity, parse_uri
from provisioning.pki.role import Role

LONGEST = "n" * 64


@pytest.mark.parametrize(
    "identity",
    [
        Identity("fleet.internal", Role.DEVICE, "meter-1", "meters"),
        Identity("fleet.internal", Role.SERVICE, "backend"),
        Identity("fleet.internal", Role.SERVICE, "backend", "site_2"),
        Identity("1", Role.OPERATOR, "0._-"),
        Identity("a-b_c.d", Role.DEVICE, LONGEST, LONGEST),
    ],
    ids=str,
)
def test_what_is_written_is_read_again(identity: Identity) -> None:
    assert parse_uri(identity.uri) == identity
    assert parse_uri(identity.uri).uri == identity.uri


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("", "does not begin with spiffe://"),
        ("xpiffe://fleet.internal/device/meters/meter-1", "does not begin with spiffe://"),
        ("SPIFFE://fleet.internal/device/meters/meter-1", "does not begin with spiffe://"),
        (" spiffe://fleet.internal/device/meters/meter-1", "does not begin with spiffe://"),
        ("spiffe://fleet.internal", "is not spiffe://<trust-domain>"),
        ("spiffe://fleet.internal/device", "is not spiffe://<trust-domain>"),
        ("spiffe://fleet.internal/device/meters/meter-1/", "is not spiffe://<trust-domain>"),
        ("spiffe://fleet.internal/device/a/b/c", "is not spiffe://<trust-domain>"),
        ("spiffe:///device/meters/meter-1", "trust domain ''"),
        ("spiffe://Fleet.internal/device/meters/meter-1", "trust domain 'Fleet.internal'"),
        ("spiffe://fleet.internal:1/device/meters/meter-1", "trust domain 'fleet.internal:1'"),
        ("spiffe://fleet.internal\n/device/meters/meter-1", "trust domain"),
        ("spiffe://fleet.internal/Device/meters/meter-1", "role 'Device'"),
        ("spiffe://fleet.internal//meters/meter-1", "role ''"),
        ("spiffe://fleet.internal/device/meter-1", "group is missing"),
        ("spiffe://fleet.internal/device//meter-1", "group ''"),
        ("spiffe://fleet.internal/device/meters/", "name ''"),
        ("spiffe://fleet.internal/device/meters/-meter", "name '-meter'"),
        ("spiffe://fleet.internal/device/meters/meter-1\n", "name 'meter-1"),
        ("spiffe://fleet.internal/device/meters/meter%2F1", "name 'meter%2F1'"),
        ("spiffe://fleet.internal/device/meters/m\N{LATIN SMALL LETTER E WITH ACUTE}ter", "name 'm"),
        (f"spiffe://fleet.internal/device/meters/{LONGEST}n", "name 'nnn"),
        (f"spiffe://fleet.internal/device/{LONGEST}n/meter-1", "group 'nnn"),
    ],
)
def test_what_is_not_exactly_ours_is_refused(uri: str, words: str) -> None:
    with pytest.raises(InvalidIdentity) as caught:
        parse_uri(uri)
    assert words in str(caught.value)


def test_each_part_tells_two_parties_apart() -> None:
    one = Identity("d", Role.SERVICE, "n", "g")
    others = [
        Identity("e", Role.SERVICE, "n", "g"),
        Identity("d", Role.BROKER, "n", "g"),
        Identity("d", Role.SERVICE, "m", "g"),
        Identity("d", Role.SERVICE, "n", "h"),
        Identity("d", Role.SERVICE, "n"),
    ]
    assert one == Identity("d", Role.SERVICE, "n", "g")
    assert hash(one) == hash(Identity("d", Role.SERVICE, "n", "g"))
    assert len({one, *others}) == 6
    assert all(one != each for each in others), "whatever their hashes are"
    assert one != one.uri
