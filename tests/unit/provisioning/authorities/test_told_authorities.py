"""Who is told of which CAs: everybody of all, a label of its own line's and of the service's."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

from cryptography import x509

from provisioning.authorities.told_authorities import ToldAuthorities
from provisioning.ca.ceremony import (
    Authority,
    CertificateAuthority,
    IssuingCaRequest,
    found_authority,
    issuing_ca_name,
    sign_issuing_ca,
    succeed_root,
)
from provisioning.client.feed_reader import Authorities, EventReader
from provisioning.pki.keys import generate_key, key_identifier
from provisioning.pki.revocation import certificate_key
from provisioning.store.authorities import AuthorityKind, AuthorityState, StoredAuthority
from tests.support.requests import NOON

ROOT, ISSUING, CROSS = AuthorityKind.ROOT, AuthorityKind.ISSUING, AuthorityKind.CROSS


def authority(domain: str) -> Authority:
    return found_authority(domain, NOON, (1 << 100, 2 << 100), None, (generate_key(), generate_key()))


def stored(name: str, kind: AuthorityKind, certificate: x509.Certificate, line: str = "default") -> StoredAuthority:
    key_id = key_identifier(certificate.public_key())
    return StoredAuthority(name, kind, AuthorityState.ACTIVE, key_id, certificate, NOON, NOON, line)


def issuing_in(event: bytes) -> list[str]:
    """Return the names of the CAs in the feed's event."""
    data = event.removeprefix(b"event: authorities\ndata: ").removesuffix(b"\n\n")
    return [each["name"] for each in json.loads(data)["issuing"]]


def test_a_label_is_told_its_line_and_the_service_s_and_everybody_all() -> None:
    own, pumps, meters = authority("fleet.internal"), authority("pumps.internal"), authority("meters.internal")
    old = CertificateAuthority(own.root_ca.certificate, own.root_ca.key)
    succession = succeed_root(old, generate_key(), "fleet.internal", (3 << 100, 4 << 100, 5 << 100), NOON)
    found = [
        stored("root-ca", ROOT, own.root_ca.certificate),
        stored("issuing-ca", ISSUING, own.issuing_ca.certificate),
        stored("issuing-pumps-1", ISSUING, pumps.issuing_ca.certificate, "pumps"),
        stored("root-2", ROOT, pumps.root_ca.certificate),
        stored("issuing-meters-1", ISSUING, meters.issuing_ca.certificate, "meters"),
        stored("root-3", ROOT, meters.root_ca.certificate),
        stored("root-4", ROOT, succession.new_root),
        stored("root-4-by-root-ca", CROSS, succession.new_with_old),
    ]
    names = {each.certificate: each.name for each in found}
    told = ToldAuthorities()
    told.take(found)
    assert not told.one_line

    service = {"root-ca", "root-4", "issuing-ca", "root-4-by-root-ca"}
    assert {names[each] for each in told.everything} == {each.name for each in found}
    assert [names[each] for each in told.everything[:4]] == ["root-ca", "root-2", "root-3", "root-4"], "roots first"
    assert {names[each] for each in told.of_line("default")} == service
    assert {names[each] for each in told.of_line("pumps")} == service | {"root-2", "issuing-pumps-1"}
    assert {names[each] for each in told.of_line("meters")} == service | {"root-3", "issuing-meters-1"}
    assert told.of_line("a line that has no CA yet") == told.of_line("default")
    assert list(told.certificates) == [
        *("root-ca", "root-2", "root-3", "root-4"),
        *("issuing-ca", "issuing-pumps-1", "issuing-meters-1"),
    ]

    assert issuing_in(told.event) == ["issuing-ca", "issuing-pumps-1", "issuing-meters-1"], (
        "and neither roots nor crosses"
    )

    # What is trusted no more is told to nobody.
    ended = [replace(each, state=AuthorityState.RETIRED) if each.line == "pumps" else each for each in found]
    told.take(ended)
    assert {names[each] for each in told.of_line("pumps")} == service
    assert not told.one_line, "there are the meters'"
    assert "issuing-pumps-1" not in told.certificates
    assert issuing_in(told.event) == ["issuing-ca", "issuing-meters-1"]


def test_with_one_line_every_label_is_told_everything() -> None:
    own = authority("fleet.internal")
    told = ToldAuthorities()
    told.take(
        [
            stored("root-ca", ROOT, own.root_ca.certificate),
            stored("issuing-ca", ISSUING, own.issuing_ca.certificate),
        ]
    )
    assert told.one_line
    assert told.of_line("default") == told.everything == [own.root_ca.certificate, own.issuing_ca.certificate]


def test_the_keys_of_revoked_cas_are_told_to_the_feed_s_subscribers() -> None:
    """Of one that had the event from a service that did not tell the key yet."""
    own, pumps = authority("fleet.internal"), authority("pumps.internal")
    found = [
        stored("issuing-ca", ISSUING, own.issuing_ca.certificate),
        replace(stored("issuing-2", ISSUING, pumps.issuing_ca.certificate), state=AuthorityState.REVOKED),
        replace(stored("root-2", ROOT, pumps.root_ca.certificate), state=AuthorityState.RETIRED),
    ]
    told = ToldAuthorities()
    told.take(found)
    read = EventReader(0)._event(told.event.removesuffix(b"\n\n"))
    assert isinstance(read, Authorities)
    assert [each.name for each in read.issuing] == ["issuing-ca"]
    certificate = pumps.issuing_ca.certificate
    assert read.revoked == ((certificate_key(certificate), key_identifier(certificate.public_key())),)


def test_the_way_to_older_roots_is_sent_in_order() -> None:
    """Mbed TLS looks for who vouches for a root only behind what it has: with an older root alone it found nobody."""
    own, key, later = authority("fleet.internal"), generate_key(), NOON + timedelta(days=1)
    roots = [CertificateAuthority(own.root_ca.certificate, own.root_ca.key)]
    second = succeed_root(roots[0], key, "fleet.internal", (3 << 100, 4 << 100, 5 << 100), NOON)
    third_key = generate_key()
    second_root = CertificateAuthority(second.new_root, key)
    third = succeed_root(second_root, third_key, "fleet.internal", (6 << 100, 7 << 100, 8 << 100), later)
    request = IssuingCaRequest(issuing_ca_name("fleet.internal", 3), generate_key().public_key())
    issuing = sign_issuing_ca(CertificateAuthority(third.new_root, third_key), request, 9 << 100, later)
    told = ToldAuthorities()
    told.take(
        [
            stored("root-ca", ROOT, roots[0].certificate),
            stored("root-2", ROOT, second.new_root),
            stored("root-3", ROOT, third.new_root),
            stored("issuing-3", ISSUING, issuing),
            stored("2by1", CROSS, second.new_with_old),
            stored("1by2", CROSS, second.old_with_new),
            stored("3by2", CROSS, third.new_with_old),
            stored("2by3", CROSS, third.old_with_new),
        ]
    )
    between = [third.new_with_old, second.new_with_old, second.old_with_new, third.old_with_new]
    assert told.between_roots(issuing, later) == between
    assert told.between_roots(issuing, NOON + timedelta(days=20_000)) == []
