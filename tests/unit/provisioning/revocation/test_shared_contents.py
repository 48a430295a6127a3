"""What all lists read together is what each would read for itself, and is read once."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import datetime, timedelta

import pytest
from cryptography import x509
from sqlalchemy import insert, text, update
from sqlalchemy.engine import Connection

from provisioning.ca.crl import CrlIssuer
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.revocation.publisher import CrlPlan, CrlPublisher
from provisioning.revocation.shared_contents import SharedContents
from provisioning.store import authorities, crls, revocations
from provisioning.store.authorities import AuthorityKind, AuthorityState
from provisioning.store.counters import crl_counter
from provisioning.store.crl_shards import CrlShard
from provisioning.store.crls import CompleteCrl, PublishedCrl
from provisioning.store.tables import certificates, crl_shards
from tests.support.fleet import Fleet, new_authority
from tests.support.many import fill
from tests.support.searched import noted

MANY = 240
SHARDS = [CrlShard(number, "first", f"http://ca.example.org/{number}") for number in (7, 8)]
_BASE = 1_000_000
"""Of the ids that `fill` gives."""


def plan(issuer: CrlIssuer, name: str, shard: CrlShard | None = None) -> CrlPlan:
    return CrlPlan(
        name, crl_counter("issuing-ca"), timedelta(hours=1), 0.01, lambda: issuer, "http://ca.example.org/delta", shard
    )


def scramble(connection: Connection, second: bytes, now: datetime, seed: int) -> None:
    """Give the revoked certificates two issuers, shards and ends, and release and hold some of them."""
    choose = random.Random(seed)
    for shard in SHARDS:
        row = {"id": shard.id, "url": shard.url}
        connection.execute(text("INSERT INTO crl_shards (id, issuer, url) VALUES (:id, 'first', :url)"), row)
    parts = (
        ("issuer_key_id = :value", 0.5, second.hex()),
        ("crl_shard_id = :value", 0.3, SHARDS[0].id),
        ("crl_shard_id = :value", 0.3, SHARDS[1].id),
    )
    for change, share, value in parts:
        for number in range(1, MANY + 1):
            if choose.random() < share:
                changed = f"UPDATE certificates SET {change} WHERE id = :id"
                connection.execute(text(changed), {"value": value, "id": _BASE + number})
    some = choose.sample(range(_BASE + 1, _BASE + MANY + 1), 80)
    revocations.release(connection, some, released_at=now, actor="admin")
    held = {"reason": RevocationReason.CERTIFICATE_HOLD, "revoked_at": now, "revoked_by": "admin"}
    revocations.add(connection, some[:30], **held)  # type: ignore[arg-type]
    revocations.release(connection, some[:10], released_at=now, actor="admin")


def told(publisher: CrlPublisher) -> Sequence[set[tuple[int, str]]]:
    """Return serial numbers and reasons of the complete list and the delta."""
    assert publisher.current is not None
    assert publisher.delta is not None
    lists = [x509.load_der_x509_crl(each.der) for each in (publisher.current, publisher.delta)]
    return [
        {(each.serial_number, str([extension.value for extension in each.extensions])) for each in listed}
        for listed in lists
    ]


@pytest.mark.parametrize("seed", range(3))
async def test_each_list_has_from_the_common_reading_what_it_would_have_read_itself(fleet: Fleet, seed: int) -> None:
    other = new_authority().issuing_ca
    own = fleet.authority.issuing_ca
    first, second = CrlIssuer(own.certificate, own.key), CrlIssuer(other.certificate, other.key)
    now = fleet.clock()
    await fleet.database.write(lambda connection: fill(connection, first.key_id, MANY, now))
    await fleet.database.write(lambda connection: scramble(connection, second.key_id, now, seed))
    plans = [
        plan(first, "first"),
        plan(first, "first-1", SHARDS[0]),
        plan(first, "first-2", SHARDS[1]),
        plan(second, "second"),
        plan(second, "second-1", SHARDS[0]),
    ]

    def had_before(connection: Connection) -> None:
        for number, each in enumerate(plans, 1):
            base = CompleteCrl(number, MANY // 2 + 30 * number)
            crls.record_complete(connection, each.name, base, now + timedelta(minutes=30), now)

    await fleet.database.write(had_before)
    shared = SharedContents(fleet.database, fleet.clock)
    for each in plans:
        alone = CrlPublisher(fleet.database, each, fleet.clock, _no_wait)
        together = CrlPublisher(fleet.database, each, fleet.clock, _no_wait, shared)
        await together.start()
        await alone.start()
        assert told(together) == told(alone)
        assert all(told(alone)), "both have entries"


async def test_the_store_is_read_once_for_all_lists_of_a_start_and_again_for_who_asks_again(fleet: Fleet) -> None:
    await fleet.enrol("meter-1")
    await fleet.revocation.revoke_device("meter-1", RevocationReason.SUPERSEDED, by="admin")
    shared = SharedContents(fleet.database, fleet.clock)
    key_id, now = fleet.issuer.key_id, fleet.clock()

    async def take_all() -> list[int]:
        found = [await shared.take(key_id, shard, now) for shard in (None, 7, 8)]
        return [len(each.complete(now)) for each in found]

    for _ in range(2):
        asked, entries = await noted(take_all())
        assert entries == [1, 0, 0]
        assert sum("FROM revocations JOIN certificates" in statement for statement, _ in asked) == 1
    shared.forget()
    asked, _ = await noted(shared.take(key_id, None, now))
    assert asked


async def test_lists_of_roots_and_of_retired_cas_do_not_have_all_read_that_has_expired_since(fleet: Fleet) -> None:
    """A root's is made twice a year, and a retired CA's never again: each start would read more."""
    key_id, now, old = fleet.issuer.key_id, fleet.clock(), fleet.clock() - timedelta(days=900)
    root, issuing = fleet.authority.root_ca.certificate, new_authority().issuing_ca.certificate

    def add(connection: Connection) -> None:
        cas = (
            ("root-7", AuthorityKind.ROOT, AuthorityState.ACTIVE, root),
            ("issuing-7", AuthorityKind.ISSUING, AuthorityState.RETIRED, issuing),
        )
        for name, kind, state, certificate in cas:
            authorities.add(connection, name, kind, state, certificate, now)
        connection.execute(insert(crl_shards).values(id=9, issuer="issuing-7", url="http://ca.example.org/9"))
        for name in ("root-7", "issuing-7", "issuing-7-9"):
            crls.add(connection, PublishedCrl(name, 1, old, old + timedelta(hours=1), 0, b""))
        crls.add(connection, PublishedCrl("issuing-ca", 1, now - timedelta(hours=2), now, 0, b""))

    await fleet.database.write(add)
    shared = SharedContents(fleet.database, fleet.clock)
    await shared.take(key_id, None, now)
    assert shared._reading is not None
    assert shared._reading.since == now - timedelta(hours=2)


async def test_lists_that_were_never_published_have_what_has_expired_since_the_others_were_by_one_more_reading(
    fleet: Fleet,
) -> None:
    """As at the first start after `crl_shards` was raised."""
    own = fleet.authority.issuing_ca
    issuer = CrlIssuer(own.certificate, own.key)
    certificate = await fleet.enrol("meter-1")
    await CrlPublisher(fleet.database, plan(issuer, "older"), fleet.clock, _no_wait).start()
    await fleet.revocation.revoke_device("meter-1", RevocationReason.SUPERSEDED, by="admin")
    fleet.clock.advance(timedelta(days=31))
    await CrlPublisher(fleet.database, plan(issuer, "older"), fleet.clock, _no_wait).publish()
    shared = SharedContents(fleet.database, fleet.clock)

    def add_shards(connection: Connection) -> None:
        for each in SHARDS:
            connection.execute(insert(crl_shards).values(id=each.id, issuer=each.issuer, url=each.url))

    await fleet.database.write(add_shards)
    published = [
        CrlPublisher(fleet.database, each, fleet.clock, _no_wait, shared)
        for each in (
            plan(issuer, "older"),
            plan(issuer, "newer"),
            *(plan(issuer, f"newer-{each.id}", each) for each in SHARDS),
        )
    ]

    async def start_all() -> None:
        for each in published:
            await each.start()

    asked, _ = await noted(start_all())
    assert sum("FROM revocations JOIN certificates" in statement for statement, _ in asked) == 2
    told_by = [published[number].current for number in range(2)]
    listed = [[each.serial_number for each in x509.load_der_x509_crl(crl.der)] for crl in told_by if crl is not None]
    assert listed == [[], [certificate.serial_number]]


async def test_who_needs_what_had_expired_has_it_though_a_reading_without_that_is_there(fleet: Fleet) -> None:
    """Whichever list asks first: each asks once, so that nothing else makes it read again."""
    shard = SHARDS[0].id

    def add_shard(connection: Connection) -> None:
        connection.execute(insert(crl_shards).values(id=shard, issuer="first", url=SHARDS[0].url))

    await fleet.database.write(add_shard)
    await fleet.enrol("meter-1")
    await fleet.database.write(lambda connection: connection.execute(update(certificates).values(crl_shard_id=shard)))
    await fleet.revocation.revoke_device("meter-1", RevocationReason.SUPERSEDED, by="admin")
    before = fleet.clock()
    fleet.clock.advance(timedelta(days=31))
    key_id, now = fleet.issuer.key_id, fleet.clock()
    shared = SharedContents(fleet.database, fleet.clock)
    assert not (await shared.take(key_id, None, now)).complete(now)
    assert len((await shared.take(key_id, shard, before)).complete(before)) == 1


async def test_one_reading_does_for_lists_that_were_published_at_different_times(fleet: Fleet) -> None:
    """Also if the one that was published last asks first."""
    own = fleet.authority.issuing_ca
    issuer = CrlIssuer(own.certificate, own.key)
    await CrlPublisher(fleet.database, plan(issuer, "older"), fleet.clock, _no_wait).start()
    before = fleet.clock()
    fleet.clock.advance(timedelta(minutes=20))
    await CrlPublisher(fleet.database, plan(issuer, "newer"), fleet.clock, _no_wait).start()
    shared = SharedContents(fleet.database, fleet.clock)

    async def take_both() -> None:
        await shared.take(issuer.key_id, None, fleet.clock())
        await shared.take(issuer.key_id, SHARDS[0].id, before)

    asked, _ = await noted(take_both())
    assert sum("FROM revocations JOIN certificates" in statement for statement, _ in asked) == 1


async def _no_wait(_seconds: float) -> None:
    """Let the clock of the test be."""
