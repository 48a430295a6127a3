"""One statement for many rows of values on PostgreSQL: what each of them would have had, and no table searched."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import bindparam, delete, insert, select, update
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DataError

from provisioning.errors import Refused
from provisioning.pki.role import Role
from provisioning.store import certificates, certificates_of_device, certificates_of_key, device_keys, devices
from provisioning.store.prepared import Prepared
from provisioning.store.tables import serial_reservations
from tests.support.fleet import Fleet, open_fleet
from tests.support.postgresql import PostgresqlServer
from tests.support.together import NOW


@pytest.fixture
async def fleet(postgresql: PostgresqlServer) -> AsyncIterator[Fleet]:
    with postgresql.database() as url:
        async with open_fleet(url) as opened:
            yield opened


async def test_many_at_once_are_answered_as_one_by_one(fleet: Fleet) -> None:
    table = serial_reservations
    put = Prepared(insert(table), told_by="serial")
    find = Prepared(select(table.c.reserved_at).where(table.c.serial == bindparam("wanted")), at_once=True)
    move = Prepared(update(table).where(table.c.serial == bindparam("wanted")).values(reserved_at=bindparam("at")),
                    at_once=True)  # fmt: skip
    drop = Prepared(delete(table).where(table.c.serial == bindparam("wanted")), at_once=True)
    names = ("aa", "none", "bb", "aa")

    def all_of(connection: Connection) -> list[Any]:
        rows = [{"serial": name, "reserved_at": NOW.replace(hour=hour)} for hour, name in enumerate(("bb", "aa"))]
        found: list[Any] = [answer.count for answer in put.answers(connection, rows)]
        wanted = [{"wanted": name} for name in names]
        found += [list(answer.rows) for answer in find.answers(connection, wanted)]
        moved = [{"wanted": name, "at": NOW} for name in names[:3]]
        found += [answer.count for answer in move.answers(connection, moved)]
        found += [list(answer.rows) for answer in find.answers(connection, wanted[:1])]
        return found + [answer.count for answer in drop.answers(connection, wanted[:3])]

    aa, bb = (NOW.replace(hour=1),), (NOW.replace(hour=0),)
    assert await fleet.database.write(all_of) == [1, 1, [aa], [], [bb], [aa], 1, 0, 1, [(NOW,)], 1, 0, 1]


async def test_a_key_that_is_somebodys_is_not_given_to_another_at_once(fleet: Fleet) -> None:
    def claims(connection: Connection) -> list[int]:
        first, second = (devices.add(connection, name, Role.DEVICE, None, NOW).id for name in "ab")
        device_keys.claim(connection, b"k" * 32, first)
        rows = [{"spki_sha256": key * 32, "device_id": second} for key in (b"k", b"l", b"l")]
        return [answer.count for answer in device_keys._claim("postgresql").answers(connection, rows)]

    assert await fleet.database.write(claims) == [0, 1, 0], "the last one wanted what the one before had just got"


async def test_what_is_too_long_is_refused_and_not_cut(fleet: Fleet) -> None:
    rows = [{"name": name, "role": "device", "group_name": None, "created_at": NOW, "origin": None}
            for name in ("short", "x" * 300)]  # fmt: skip
    with pytest.raises((Refused, DataError)):
        await fleet.database.write(lambda connection: devices._ADD.answers(connection, rows))


async def test_what_a_key_or_a_device_has_had_is_looked_up_and_not_searched_for_in_all_revocations(
    fleet: Fleet,
) -> None:
    """Also while the server has no statistics: a history has just been imported, or a database restored."""
    of_all = (
        """INSERT INTO devices (name, role, created_at)
            SELECT 'old-' || n, 'device', now() FROM generate_series(1, 30000) n""",
        """INSERT INTO certificates
            (issuer_key_id, serial, device_id, spki_sha256, fingerprint_sha256, not_before, not_after, issued_at, der)
            SELECT 'ab', 's' || id, id, decode(md5(name), 'hex'), id::text, now(), now(), now(),
            decode(repeat('00', 500), 'hex') FROM devices""",
        """INSERT INTO revocations (sequence, certificate_id, reason, revoked_at, revoked_by)
            SELECT id, id, 'superseded', now(), 'admin' FROM certificates""",
    )

    def look_up(connection: Connection) -> tuple[list[int], int]:
        of_device = certificates_of_device._OF_DEVICE.answers(connection, [{"wanted": number} for number in (7, 8, 9)])
        in_doubt = [{"of": 7, "wanted": bytes(16)}, {"of": 8, "wanted": bytes(15)}]
        assert [answer.count for answer in certificates_of_key._DOUBT.answers(connection, in_doubt)] == [0, 0]
        of_ids = [{"wanted": number} for number in range(1, 3001)]
        assert [answer.count for answer in certificates._WITH_ID.answers(connection, of_ids)] == [1] * 3000
        certificates_of_key.doubt(connection, certificates_of_key.DeviceKey(7, bytes(16)))
        certificates_of_device.every(connection, 7)
        read = "SELECT seq_tup_read FROM pg_stat_xact_user_tables WHERE relname = 'revocations'"
        return [answer.count for answer in of_device], connection.exec_driver_sql(read).scalar_one()

    def import_all(connection: Connection) -> None:
        for each in of_all:
            connection.exec_driver_sql(each)

    await fleet.database.write(import_all)
    assert await fleet.database.write(look_up) == ([1, 1, 1], 0)
