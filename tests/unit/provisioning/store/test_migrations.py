"""A store made by an earlier version is brought up to date without loss."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import delete, event, select, text
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import IntegrityError

from provisioning.ca.profile import ProfileConfig
from provisioning.enrolment.attempt import TokenCredential
from provisioning.enrolment.claims import ClaimOrder, _self_signed
from provisioning.enrolment.tokens import TokenOrder
from provisioning.errors import Code, Refused
from provisioning.pki.keys import generate_key, spki_fingerprint
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from provisioning.store import (
    audit,
    audit_findings,
    device_keys,
    devices,
    inventory,
    manufacturer_list_urls,
    manufacturer_lists,
    manufacturers,
    revocations,
    schema,
    tables,
    tokens,
)
from provisioning.store.certificates import CertificateState
from provisioning.store.database import Database
from provisioning.store.devices import DeviceState
from provisioning.store.inventory import CertificateSearch
from tests.support.fleet import open_fleet, successor_csr
from tests.support.many import fill
from tests.support.requests import csr_der

NOW = datetime(2026, 3, 1, tzinfo=UTC)

FIRST_RELEASE = """
INSERT INTO devices (id, name, role, group_name, created_at, revoked_at) VALUES
    (1, 'meter-1', 'device', 'north', '2026-01-01 00:00:00', NULL),
    (2, 'meter-2', 'device', 'north', '2026-01-01 00:00:00', '2026-02-01 00:00:00');
INSERT INTO certificates
    (id, issuer_key_id, serial, device_id, spki_sha256, fingerprint_sha256, not_before, not_after, issued_at, der)
VALUES
    (1, 'aa', '1f', 1, x'01', 'f1', '2026-01-01 00:00:00', '2027-01-01 00:00:00', '2026-01-01 00:00:00', x'30'),
    (2, 'aa', '2f', 2, x'02', 'f2', '2026-01-01 00:00:00', '2027-01-01 00:00:00', '2026-01-01 00:00:00', x'30');
INSERT INTO revocations (sequence, certificate_id, reason, revoked_at, revoked_by) VALUES
    (1, 2, 'keyCompromise', '2026-02-01 00:00:00', 'admin');
INSERT INTO crls (issuer, number, this_update, next_update, entries, der) VALUES
    ('issuing-ca', 4, '2026-02-01 00:00:00', '2026-02-02 00:00:00', 1, x'30');
UPDATE counters SET value = 1 WHERE name = 'revocation';
UPDATE counters SET value = 4 WHERE name = 'crl/issuing-ca';
"""


def configuration(connection: Connection) -> Config:
    config = schema._configuration()
    config.attributes["connection"] = connection
    return config


def as_of(connection: Connection, revision: str) -> None:
    command.upgrade(configuration(connection), revision)


def execute(connection: Connection, script: str) -> None:
    """Execute the statements of *script*, in which ``{blob}`` is the store's type of bytes."""
    blob = "BLOB" if connection.dialect.name == "sqlite" else "BYTEA"
    for statement in script.format(blob=blob).split(";"):
        if statement.strip():
            connection.execute(text(statement))


def upgrade_from(connection: Connection, before: str, revision: str, script: str = "") -> None:
    """Take the store back to revision *before*, execute *script* there, and upgrade it to *revision*."""
    command.downgrade(configuration(connection), before)
    execute(connection, script)
    as_of(connection, revision)


TOKENS = """
INSERT INTO devices (id, name, role, created_at) VALUES
    (1, 'contractor', 'operator', '2026-01-01 00:00:00'),
    (2, 'meter-2', 'device', '2026-01-01 00:00:00');
INSERT INTO certificates
    (id, issuer_key_id, serial, device_id, spki_sha256, fingerprint_sha256, not_before, not_after, issued_at, der)
    SELECT number, 'aa', 's' || number, CASE number WHEN 2 THEN 2 ELSE 1 END, CAST('k' AS {blob}), 'f' || number,
           '2026-01-01 00:00:00', '2027-01-01 00:00:00', '2026-01-01 00:00:00', CAST('0' AS {blob})
    FROM (SELECT 1 AS number UNION SELECT 2 UNION SELECT 3 UNION SELECT 4 UNION SELECT 5 UNION SELECT 6) AS numbers;
INSERT INTO tokens
    (id, digest, role, dns_names, ip_addresses, lifetime_seconds, created_at, created_by, expires_at, used_at,
     certificate_id)
VALUES
    (1, CAST('1' AS {blob}), 'operator', '[]', '[]', 28800, '2026-01-01 00:00:00', 'admin', '2026-01-02 00:00:00',
     '2026-01-01 00:00:00', 3),
    (2, CAST('2' AS {blob}), 'operator', '[]', '[]', NULL, '2026-01-01 00:00:00', 'admin', '2026-01-02 00:00:00',
     '2026-01-01 00:00:00', 5),
    (3, CAST('3' AS {blob}), 'device', '[]', '[]', 60, '2026-01-01 00:00:00', 'admin', '2026-01-02 00:00:00',
     '2026-01-01 00:00:00', 2),
    (4, CAST('4' AS {blob}), 'device', '[]', '[]', 90, '2026-01-01 00:00:00', 'admin', '2026-01-02 00:00:00',
     NULL, NULL);
"""
"""The operator has had 1 by nobody knows what, 3 for eight hours, renewed as 4; 5 for the profile's life, then 6."""


async def test_what_a_token_granted_before_holds_for_the_renewals_after_the_upgrade(store_url: str) -> None:
    database = Database(store_url)

    def back_and_forth(connection: Connection) -> dict[int, int | None]:
        upgrade_from(connection, "0017", "0018", TOKENS)
        rows = connection.execute(text("SELECT id, granted_seconds FROM certificates"))
        return {row.id: row.granted_seconds for row in rows}

    granted = await database.write(back_and_forth)
    await database.close()
    assert granted == {1: None, 2: 60, 3: 28800, 4: 28800, 5: None, 6: None}


async def test_a_store_of_the_first_release_is_upgraded_without_loss(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'fleet.db'}")
    await database.write(lambda connection: as_of(connection, "0001"))
    await database.write(lambda connection: execute(connection, FIRST_RELEASE))
    assert await schema.upgrade(database)

    def look(connection: Connection) -> None:
        (event,) = revocations.after(connection, 0, 10)
        assert (event.sequence, event.kind, event.serial, event.device) == (1, "revoked", "2f", "meter-2")
        assert event.reason is RevocationReason.KEY_COMPROMISE
        assert event.occurred_at == datetime(2026, 2, 1, tzinfo=UTC)
        assert revocations.newest(connection) == 1
        assert connection.execute(audit.READ_HEAD).one()[0] == 0
        assert list(audit_findings.findings(connection)) == []
        counted = devices.count(connection)
        assert (counted[DeviceState.ACTIVE], counted[DeviceState.REVOKED]) == (1, 1)
        found, _ = inventory.page(connection, CertificateSearch(), limit=9, after=None, now=NOW)
        states = {each.serial: each.state(NOW) for each in found}
        assert not device_keys.claim(connection, b"\x02", 1)
        assert device_keys.holder(connection, b"\x02") == 2  # The key of meter-2 since the first release.
        assert states == {"1f": CertificateState.ACTIVE, "2f": CertificateState.REVOKED}

    await database.write(look)
    await database.close()


TRIALS = """
INSERT INTO claims (id, name, group_name, fingerprint_sha256, der, maximum_devices, trial_seconds, created_at,
                    created_by, expires_at)
    VALUES (1, 'batch', 'line', 'c', CAST('c' AS {blob}), 9, 3600, '2026-01-01 00:00:00', 'admin',
            '2027-01-01 00:00:00');
INSERT INTO devices (id, name, role, created_at)
    SELECT number, 'meter-' || number, 'device', '2026-01-01 00:00:00'
    FROM (SELECT 1 AS number UNION SELECT 2 UNION SELECT 3 UNION SELECT 4) AS numbers;
INSERT INTO certificates
    (id, issuer_key_id, serial, device_id, spki_sha256, fingerprint_sha256, not_before, not_after, issued_at, der)
    SELECT number, 'aa', 's' || number, CASE WHEN number > 4 THEN number - 4 ELSE number END, CAST('k' AS {blob}),
           'f' || number, '2026-01-01 00:00:00', '2027-01-01 00:00:00', '2026-01-01 00:00:00', CAST('0' AS {blob})
    FROM (SELECT 1 AS number UNION SELECT 2 UNION SELECT 3 UNION SELECT 4 UNION SELECT 5 UNION SELECT 6) AS numbers;
INSERT INTO activations (certificate_id, claim_id, device_id, expires_at, activated_at) VALUES
    (1, 1, 1, '2026-01-01 01:00:00', NULL),
    (5, 1, 1, '2026-01-01 03:00:00', NULL),
    (2, 1, 2, '2026-01-01 01:00:00', NULL),
    (3, 1, 3, '2026-01-01 01:00:00', '2026-01-01 00:30:00');
"""
"""The first device has two trials; the second one and a certificate; the third has activated; the fourth had none."""


async def test_who_only_ever_had_trials_counts_until_the_last_ends_after_the_upgrade(store_url: str) -> None:
    database = Database(store_url)

    def back_and_forth(connection: Connection) -> dict[int, datetime | None]:
        upgrade_from(connection, "0018", "0019", TRIALS)
        return {row.id: row.trial_ends_at for row in connection.execute(select(tables.devices))}

    ends = await database.write(back_and_forth)
    await database.close()
    assert ends == {1: datetime(2026, 1, 1, 3, tzinfo=UTC), 2: None, 3: None, 4: None}


MORE_TRIALS = """
UPDATE activations SET expires_at = '2999-01-01 00:00:00' WHERE certificate_id = 5;
INSERT INTO activations (certificate_id, claim_id, device_id, expires_at) VALUES
    (6, 1, 3, '2999-01-01 00:00:00'),
    (4, 1, 4, '2026-01-01 01:00:00')
"""
"""The first is on trial once more, and the third, which has activated; the second and the fourth have lost theirs."""


async def test_who_has_activated_or_is_on_trial_has_a_place_of_the_claim_after_the_upgrade(store_url: str) -> None:
    database = Database(store_url)

    def back_and_forth(connection: Connection) -> tuple[dict[int, datetime | None], int]:
        upgrade_from(connection, "0019", "0020", TRIALS + MORE_TRIALS)
        rows = connection.execute(select(tables.claim_places)).all()
        taken: int = connection.execute(select(tables.claims.c.taken)).scalar_one()
        return {row.device_id: row.ends_at for row in rows}, taken

    places, taken = await database.write(back_and_forth)
    await database.close()
    assert places == {1: datetime(2999, 1, 1, tzinfo=UTC), 3: None}
    assert taken == 2


LOST_TRIALS = """
INSERT INTO revocations (sequence, certificate_id, reason, revoked_at, revoked_by) VALUES
    (1, 1, 'certificateHold', '2026-01-01 00:00:00', 'claim'),
    (2, 5, 'keyCompromise', '2026-01-01 00:00:00', 'admin'),
    (3, 2, 'superseded', '2026-01-01 00:00:00', 'claim'),
    (4, 4, 'keyCompromise', '2026-01-01 00:00:00', 'admin')
"""
"""The first's first trial is on hold, as all are; its second was withdrawn, and the second's replaced."""


async def test_which_trials_were_withdrawn_is_known_after_the_upgrade(store_url: str) -> None:
    database = Database(store_url)

    def back_and_forth(connection: Connection) -> dict[int, datetime | None]:
        upgrade_from(connection, "0024", "0025", TRIALS + LOST_TRIALS)
        return {row.certificate_id: row.withdrawn_at for row in connection.execute(select(tables.activations))}

    withdrawn = await database.write(back_and_forth)
    await database.close()
    then = datetime(2026, 1, 1, tzinfo=UTC)
    assert withdrawn == {1: None, 2: then, 3: None, 5: then}


async def test_a_host_name_is_of_the_device_that_had_it_first_after_the_upgrade(store_url: str) -> None:
    profile = ProfileConfig("device", timedelta(days=7), honoured_domains=("x.example",))
    async with open_fleet(store_url, configured=[profile]) as fleet:
        # More than may be in memory at a time: before those with a name on SQLite, after them on PostgreSQL.
        await fleet.database.write(lambda connection: fill(connection, fleet.issuer.key_id, 1500, fleet.clock()))
        for device, host in (("meter-1", "a.x.example"), ("meter-2", "b.x.example"), ("meter-3", "a.x.example")):
            extension = x509.SubjectAlternativeName([x509.DNSName(host)])
            token = TokenCredential(device, await fleet.token(device))
            await fleet.enrolment.enrol(csr_der(names=[device], extensions=[extension]), token)
            forget = delete(tables.host_names)
            await fleet.database.write(lambda connection: connection.execute(forget))

        def back_and_forth(connection: Connection) -> dict[str, str]:
            connection.execute(text("UPDATE certificates SET not_after = '2999-01-01 00:00:00'"))
            connection.execute(text("UPDATE devices SET role = 'service' WHERE name = 'meter-2'"))  # It may ask, too.
            upgrade_from(connection, "0020", "0021")
            rows = connection.execute(
                select(tables.host_names.c.name, tables.devices.c.name).join_from(tables.host_names, tables.devices)
            )
            return {row[0]: row[1] for row in rows}

        read: list[int] = []

        def note(_connection: Any, cursor: Any, statement: str, *_more: Any) -> None:
            if "certificates.der" in statement:
                read.append(cursor.rowcount)

        event.listen(Engine, "after_cursor_execute", note)
        try:
            assert await fleet.database.write(back_and_forth) == {"a.x.example": "meter-1", "b.x.example": "meter-2"}
        finally:
            event.remove(Engine, "after_cursor_execute", note)
        assert len(read) > 1
        assert max(read) <= 1000


async def test_certificates_are_found_and_kept_apart_as_before_when_their_index_is_another(store_url: str) -> None:
    async with open_fleet(store_url) as fleet:
        await fleet.database.write(lambda connection: fill(connection, fleet.issuer.key_id, 2000, fleet.clock()))
        certificate = await fleet.enrol("meter-1")
        serial = f"{certificate.serial_number:x}"

        def found(connection: Connection) -> tuple[object, ...]:
            # In words that every one of these schemas understands.
            its = select(tables.certificates).where(tables.certificates.c.serial == serial)
            one = connection.execute(its).one()
            issuer = fleet.issuer.key_id.hex()
            assert connection.execute(its.where(tables.certificates.c.issuer_key_id == issuer)).one() == one
            with pytest.raises(IntegrityError), connection.begin_nested():
                connection.execute(text(_AGAIN), {"serial": serial})
            kept = connection.execute(select(tables.device_keys).order_by(tables.device_keys.c.spki_sha256)).all()
            reserved = connection.scalars(select(tables.serial_reservations.c.serial).order_by("serial")).all()
            return *one, kept, reserved

        def back_and_forth(connection: Connection) -> None:
            before = found(connection)
            command.downgrade(configuration(connection), "0021")
            assert found(connection) == before
            as_of(connection, "0022")
            assert found(connection) == before
            if connection.dialect.name == "sqlite":
                assert connection.exec_driver_sql("PRAGMA integrity_check").scalar_one() == "ok"
                assert connection.exec_driver_sql("PRAGMA foreign_key_check").all() == []
            as_of(connection, "head")

        await fleet.database.write(back_and_forth)
        await fleet.enrol("meter-2")


_AGAIN = """
INSERT INTO certificates
    (issuer_key_id, serial, device_id, spki_sha256, fingerprint_sha256, not_before, not_after, issued_at, der)
    SELECT issuer_key_id, serial, device_id, spki_sha256, fingerprint_sha256, not_before, not_after, issued_at, der
    FROM certificates WHERE serial = :serial
"""
"""The number of another certificate of the same CA."""


async def test_a_manufacturer_of_before_has_no_list_and_would_wait_for_a_next_one(store_url: str) -> None:
    def upgraded(connection: Connection) -> tuple[object, ...]:
        upgrade_from(connection, "0022", "0024", _MANUFACTURER)
        (known,) = manufacturers.page(connection, limit=9, after=None)
        lists = manufacturer_lists.of_manufacturer(connection, known.id)
        return known.lapsed_lists, known.revoked_devices, lists, manufacturer_list_urls.in_force(connection)

    database = Database(store_url)
    assert await database.write(upgraded) == ("refuse", "report", [], [])
    await database.close()


_MANUFACTURER = """
INSERT INTO manufacturers (name, group_name, name_prefix, subject, fingerprint_sha256, der, created_at, created_by)
    VALUES ('acme', 'line', '', '', 'aa', '', '2026-01-01 00:00:00', 'admin')
"""


async def test_keys_that_nobody_has_claimed_are_their_first_holder_s_after_the_upgrade(store_url: str) -> None:
    """An OCSP signer's, and what was imported: no device is certified for one of them afterwards."""
    key, other = generate_key(), generate_key()
    async with open_fleet(store_url) as fleet:
        compromised = await fleet.enrol("meter-1", csr_der(key, names=["meter-1"]))
        await fleet.enrol("meter-2", csr_der(other, names=["meter-2"]))
        await fleet.revocation.revoke_device("meter-1", RevocationReason.KEY_COMPROMISE, by="admin")

        def back_and_forth(connection: Connection) -> dict[bytes, str]:
            connection.execute(delete(tables.device_keys))
            upgrade_from(connection, "0028", "0029", _SAME_KEY)
            as_of(connection, "head")
            held = select(tables.device_keys.c.spki_sha256, tables.devices.c.name).join_from(
                tables.device_keys, tables.devices
            )
            return {row[0]: row[1] for row in connection.execute(held)}

        holders = await fleet.database.write(back_and_forth)
        assert holders == {
            spki_fingerprint(each.public_key()): name for each, name in ((key, "meter-1"), (other, "meter-2"))
        }
        for name, again in (("meter-3", other), ("meter-1", key)):
            with pytest.raises(Refused) as refused:
                await fleet.enrol(name, csr_der(again, names=[name]))
            assert refused.value.code is Code.KEY_REUSED
        assert compromised.public_key() == key.public_key()


_SAME_KEY = """
INSERT INTO devices (id, name, role, created_at) VALUES (99, 'meter-9', 'device', '2026-01-01 00:00:00');
INSERT INTO certificates
    (issuer_key_id, serial, device_id, spki_sha256, fingerprint_sha256, not_before, not_after, issued_at, der)
    SELECT issuer_key_id, 'ff', 99, spki_sha256, fingerprint_sha256, not_before, not_after, issued_at, der
    FROM certificates WHERE id = (SELECT MIN(id) FROM certificates)
"""
"""A device that has the key of another, from before a key was one device's."""


async def test_a_server_s_host_name_is_kept_from_devices_after_the_upgrade(store_url: str) -> None:
    profile = ProfileConfig("device", timedelta(days=7), honoured_domains=("x.example",))
    async with open_fleet(store_url, configured=[profile]) as fleet:
        for server, host in (("mqtt-1", "a.x.example"), ("mqtt-2", "b.x.example"), ("mqtt-3", "c.x.example")):
            order = TokenOrder([server], None, Role.BROKER, dns_names=(host,))
            (token,) = await fleet.token_service.create(order, by="admin")
            await fleet.enrolment.enrol(csr_der(names=[server]), TokenCredential(server, token.token))
        await fleet.revocation.decommission("mqtt-3", by="admin")
        forget = delete(tables.host_names)
        await fleet.database.write(lambda connection: connection.execute(forget))
        extension = x509.SubjectAlternativeName([x509.DNSName("b.x.example")])
        await fleet.enrolment.enrol(
            csr_der(names=["meter-1"], extensions=[extension]), TokenCredential("meter-1", await fleet.token("meter-1"))
        )

        def back_and_forth(connection: Connection) -> dict[str, str]:
            connection.execute(text("UPDATE certificates SET not_after = '2999-01-01 00:00:00'"))
            upgrade_from(connection, "0027", "0028")
            rows = connection.execute(
                select(tables.host_names.c.name, tables.devices.c.name).join_from(tables.host_names, tables.devices)
            )
            return {row[0]: row[1] for row in rows}

        assert await fleet.database.write(back_and_forth) == {"a.x.example": "mqtt-1", "b.x.example": "meter-1"}


async def test_tokens_that_are_void_together_are_void_one_by_one_before(store_url: str) -> None:
    async with open_fleet(store_url) as fleet:
        orders = [("boss", "meter-1"), ("boss", "meter-2"), ("anna", "meter-3")]
        for by, name in orders:
            await fleet.token_service.create(TokenOrder([name], "north", Role.DEVICE), by=by)
        voided_at = fleet.clock()
        await fleet.database.write(lambda connection: tokens.void_made_by(connection, ["boss"], voided_at))
        await fleet.token_service.create(TokenOrder(["meter-4"], "north", Role.DEVICE), by="boss")

        def back_and_forth(connection: Connection) -> list[tuple[object, ...]]:
            upgrade_from(connection, "0030", "0031")
            rows = connection.execute(select(tables.tokens.c.device, tables.tokens.c.voided_at).order_by("id"))
            return [tuple(row) for row in rows]

        assert await fleet.database.write(back_and_forth) == [
            ("meter-1", voided_at), ("meter-2", voided_at), ("meter-3", None), ("meter-4", None)
        ]  # fmt: skip


_EXPIRIES = {
    "postgresql": "SELECT indexdef FROM pg_indexes WHERE indexname = 'ix_certificates_not_after'",
    "sqlite": "SELECT sql FROM sqlite_master WHERE name = 'ix_certificates_not_after'",
}


async def test_a_store_of_certificates_has_their_numbers_in_the_index_of_expiries_after_the_upgrade(
    store_url: str,
) -> None:
    async with open_fleet(store_url) as fleet:
        await fleet.enrol("meter-1", csr_der(names=["meter-1"]))

        def back_and_forth(connection: Connection) -> list[str]:
            defined = text(_EXPIRIES[connection.dialect.name])
            found = [connection.execute(defined).scalar_one()]
            command.downgrade(configuration(connection), "0034")
            found.append(connection.execute(defined).scalar_one())
            as_of(connection, "0035")
            return [*found, connection.execute(defined).scalar_one()]

        new, old, again = await fleet.database.write(back_and_forth)
        assert new == again
        assert "(not_after, crl_shard_id, device_id)" in old
        assert new == (old if fleet.database.url.get_backend_name() == "sqlite" else f"{old} INCLUDE (id)")
        await fleet.enrol("meter-2", csr_der(names=["meter-2"]))
        counted = await fleet.database.read(lambda connection: inventory.count(connection, fleet.clock()))
        assert counted[CertificateState.ACTIVE] == 2


async def test_keys_of_claims_are_kept_from_devices_after_the_upgrade_and_one_that_a_device_has_stays_its_own(
    store_url: str,
) -> None:
    taken, free = generate_key(), generate_key()
    async with open_fleet(store_url) as fleet:
        certificate = await fleet.enrol("meter-1", csr_der(taken, names=["meter-1"]))
        ders = [_self_signed(ClaimOrder("batch", "line", 2, timedelta(days=9)), key, NOW) for key in (taken, free)]

        def back_and_forth(connection: Connection) -> list[bool]:
            command.downgrade(configuration(connection), "0035")
            needed = [_device_is_needed(connection)]
            for number, each in enumerate(ders):
                row = {"number": number, "der": each.public_bytes(Encoding.DER)}
                connection.execute(text(_CLAIM), row)
            as_of(connection, "0036")
            command.downgrade(configuration(connection), "0035")
            needed.append(_device_is_needed(connection))
            as_of(connection, "0036")
            if connection.dialect.name == "sqlite":
                assert connection.exec_driver_sql("PRAGMA integrity_check").scalar_one() == "ok"
                assert connection.exec_driver_sql("PRAGMA foreign_key_check").all() == []
            needed.append(_device_is_needed(connection))
            as_of(connection, "head")
            return needed

        assert await fleet.database.write(back_and_forth) == [True, True, False]
        with pytest.raises(Refused, match="KEY_REUSED: this is a claim's key"):
            await fleet.enrol("meter-2", csr_der(free, names=["meter-2"]))
        with pytest.raises(Refused, match="KEY_REUSED: another device"):
            await fleet.enrol("meter-2", csr_der(taken, names=["meter-2"]))
        renewed = await fleet.reenrol(certificate, successor_csr(certificate, taken))
        assert renewed.public_key() == taken.public_key()


def _device_is_needed(connection: Connection) -> bool:
    try:
        with connection.begin_nested():
            connection.execute(text("INSERT INTO device_keys (spki_sha256) VALUES (:key)"), {"key": b"k" * 32})
            connection.execute(text("DELETE FROM device_keys WHERE spki_sha256 = :key"), {"key": b"k" * 32})
    except IntegrityError:
        return True
    return False


_CLAIM = """
INSERT INTO claims
    (id, name, group_name, fingerprint_sha256, der, maximum_devices, trial_seconds, created_at, created_by, expires_at)
VALUES (:number, 'batch-' || CAST(:number AS VARCHAR), 'line', CAST(:number AS VARCHAR), :der, 2, 60,
        '2026-01-01 00:00:00', 'admin', '2027-01-01 00:00:00')
"""
