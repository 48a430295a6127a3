"""One more revocation costs the same, whether nobody or a hundred thousand are revoked already."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import text
from sqlalchemy.engine import Connection

from provisioning.ca.crl import CrlIssuer
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.revocation.publisher import CrlPlan, CrlPublisher
from provisioning.store import (
    certificates,
    certificates_of_key,
    devices,
    recalls,
    revocations,
    unfinished_ends,
    unfinished_key_ends,
)
from provisioning.store.certificates_of_key import key_of
from provisioning.store.counters import crl_counter
from tests.support.fleet import Fleet
from tests.support.many import fill
from tests.support.openssl import openssl
from tests.support.searched import Statement, noted, rows_read, scanned

MANY = 100_000
ROUND = 15


async def statements_to_revoke(fleet: Fleet, name: str) -> list[Statement]:
    """Revoke a new device; return what the database was asked meanwhile."""
    await fleet.enrol(name)
    asked, _ = await noted(fleet.revocation.revoke_device(name, RevocationReason.SUPERSEDED, by="admin"))
    return asked


@pytest.mark.timeout(300)
async def test_the_hundred_thousand_and_first_costs_what_the_first_did(fleet: Fleet, tmp_path: Path) -> None:
    issuing = fleet.authority.issuing_ca
    alone = await statements_to_revoke(fleet, "early")
    await fleet.database.write(lambda connection: connection.exec_driver_sql("DELETE FROM revocation_events"))
    await fleet.database.write(lambda connection: connection.exec_driver_sql("DELETE FROM revocations"))
    await fleet.database.write(lambda connection: connection.exec_driver_sql("UPDATE counters SET value = 0"))
    await fleet.database.write(lambda connection: fill(connection, fleet.issuer.key_id, MANY, fleet.clock()))
    plan = CrlPlan(
        "issuing-ca",
        crl_counter("issuing-ca"),
        timedelta(days=1),
        0.01,
        lambda: CrlIssuer(issuing.certificate, issuing.key),
        delta_url="http://ca.example.org/crl/issuing-ca.delta.crl",
    )
    publisher = CrlPublisher(fleet.database, plan, fleet.clock)
    await publisher.start()
    await fleet.database.write(lambda connection: connection.exec_driver_sql("ANALYZE"))
    for number in range(ROUND):
        crowded = await statements_to_revoke(fleet, f"late-{number}")
    assert len(crowded) == len(alone)
    assert await fleet.database.read(lambda connection: scanned(connection, crowded)) == set()

    await publisher.publish()
    assert publisher.current is not None
    assert publisher.delta is not None
    assert (publisher.current.entries, publisher.delta.entries) == (MANY + ROUND, ROUND)
    (tmp_path / "ca.pem").write_bytes(issuing.certificate.public_bytes(Encoding.PEM))
    for crl in (publisher.current.der, publisher.delta.der):
        openssl("crl", "-inform", "DER", "-noout", "-verify", "-CAfile", tmp_path / "ca.pem", data=crl)
    loaded = x509.load_der_x509_crl(publisher.current.der)
    assert len(loaded) == MANY + ROUND


async def test_what_is_new_for_a_list_is_looked_up_by_its_place_and_not_searched_for(fleet: Fleet) -> None:
    """Also while PostgreSQL has no statistics: it is done while nobody else can write."""
    issuer = fleet.issuer.key_id
    await fleet.database.write(lambda connection: fill(connection, issuer, 30_000, fleet.clock()))
    await fleet.enrol("late")
    await fleet.revocation.revoke_device("late", RevocationReason.KEY_COMPROMISE, by="admin")

    def look(connection: Connection) -> tuple[list[int], int]:
        before = rows_read(connection)
        found = revocations.changes(connection, issuer, None, 29_998, 30_001)
        return [each.sequence for each in found], rows_read(connection) - before

    asked, found = await noted(fleet.database.write(look))
    assert found == ([29_999, 30_000, 30_001], 0)
    assert await fleet.database.read(lambda connection: scanned(connection, asked)) == set()


@pytest.mark.parametrize("asked_for", [recalls.count_in, unfinished_ends.names, unfinished_ends.shut_out])
async def test_what_is_asked_every_few_seconds_is_not_searched_for(
    fleet: Fleet, asked_for: Callable[[Connection], object]
) -> None:
    """For ever, in a fleet in which nothing is left to do; also while PostgreSQL has no statistics."""
    await fleet.database.write(lambda connection: fill(connection, fleet.issuer.key_id, 30_000, fleet.clock()))
    asked, found = await noted(fleet.database.read(asked_for))
    assert not found
    assert await fleet.database.read(lambda connection: scanned(connection, asked)) == set()


@pytest.mark.timeout(300)
async def test_a_batch_is_looked_up_and_not_searched_for(fleet: Fleet) -> None:
    """Also while PostgreSQL has no statistics; by names and by serial numbers, and for the keys of what is found."""
    each = 500
    await fleet.database.write(lambda connection: fill(connection, fleet.issuer.key_id, MANY, fleet.clock()))

    def own_keys(connection: Connection) -> list[str]:
        rows = connection.execute(text("SELECT id, serial FROM certificates ORDER BY id DESC LIMIT 500")).all()
        change = text("UPDATE certificates SET spki_sha256 = :key WHERE id = :id")
        connection.execute(change, [{"key": b"%032d" % row.id, "id": row.id} for row in rows])
        return [row.serial for row in rows]

    serials = await fleet.database.write(own_keys)
    names = [f"gone-{number}" for number in range(1, each + 1)]

    def look(connection: Connection) -> tuple[set[str], int, int, int]:
        before = rows_read(connection)
        locked = devices.lock_all(connection, names, serials)
        whole = [device.id for device in locked if device.name in set(names)]
        found = certificates.of_devices_or_with_serials(connection, whole, serials)
        of_keys = [key_of(row) for row in found if row.serial in set(serials)]
        assert unfinished_key_ends.of_each(connection, of_keys) == set()
        keys = [identifier for some in certificates_of_key.first_ids(connection, of_keys, 101) for identifier in some]
        assert {row.device.id for row in found} == {device.id for device in locked}
        assert [row.id for row in found] == sorted(row.id for row in found)
        assert keys == [row.id for row in found[each:]]
        assert [device.name for device in locked] == sorted(device.name for device in locked)
        assert all(row.revocation is not None for row in found)
        return {row.serial for row in found[each:]}, len(locked), len(found), rows_read(connection) - before

    asked, found = await noted(fleet.database.write(look))
    assert found == (set(serials), 2 * each, 2 * each, 0)
    assert await fleet.database.read(lambda connection: scanned(connection, asked)) == set()


async def test_what_is_new_is_told_in_order_whoever_else_has_news(fleet: Fleet) -> None:
    """More than one page of events, of several issuers and shards."""
    issuer = fleet.issuer.key_id
    other = bytes(reversed(issuer))

    def spread(connection: Connection) -> None:
        fill(connection, issuer, 2_500, fleet.clock())
        connection.exec_driver_sql(
            "INSERT INTO crl_shards (id, issuer, url) VALUES (7, 'issuing-ca', 'http://ca.example.org/7')"
        )
        others = text("UPDATE certificates SET issuer_key_id = :other WHERE id % 3 = 0")
        connection.execute(others, {"other": other.hex()})
        connection.execute(text("UPDATE certificates SET crl_shard_id = 7 WHERE id % 6 = 4"))
        connection.exec_driver_sql("DELETE FROM revocations WHERE sequence = 2001")  # It was released.

    await fleet.database.write(spread)
    base = 1_000_000

    def places(key: bytes, shard: int | None, after: int, through: int) -> Callable[[Connection], list[int]]:
        return lambda connection: [
            each.sequence for each in revocations.changes(connection, key, shard, after, through)
        ]

    for after, through in ((0, 2500), (10, 2400), (999, 1001), (2499, 2500), (5, 5), (0, 4000)):
        numbers = range(after + 1, min(through, 2500) + 1)
        read = fleet.database.read
        assert await read(places(issuer, None, after, through)) == [n for n in numbers if (base + n) % 3]
        assert await read(places(other, None, after, through)) == [n for n in numbers if (base + n) % 3 == 0]
        of_shard = [n for n in numbers if (base + n) % 6 == 4]
        assert await read(places(issuer, 7, after, through)) == of_shard
        assert await read(places(issuer, 8, after, through)) == []
    (released,) = await fleet.database.read(
        lambda connection: revocations.changes(connection, issuer, None, 2000, 2001)
    )
    assert (released.sequence, released.revoked_at, released.reason) == (2001, None, None)
