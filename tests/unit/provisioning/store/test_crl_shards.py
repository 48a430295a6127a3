"""Parts of a CA's CRL: as many as are wanted now, each under one URL for ever."""

from __future__ import annotations

from sqlalchemy.engine import Connection

from provisioning.store import crl_shards
from tests.support.fleet import Fleet

HERE = "http://pki.example.org"


async def test_fewer_parts_are_the_first_ones_and_more_are_those_and_new_ones(fleet: Fleet) -> None:
    def change(connection: Connection) -> None:
        def ensure(issuer: str, origin: str, count: int) -> list[int]:
            shards = crl_shards.ensure(connection, issuer, origin, count)
            assert [each.url for each in shards] == [f"{origin}/crl/{issuer}-{each.id}.crl" for each in shards]
            return [each.id for each in shards]

        four = ensure("batch", HERE, 4)
        others = ensure("batch-1", HERE, 2)
        assert not set(four) & set(others)
        assert ensure("batch", HERE, 2) == four[:2]
        six = ensure("batch", HERE, 6)
        assert (six[:4], len(set(six) | set(others))) == (four, 8)
        elsewhere = ensure("batch", "http://elsewhere.example.org", 2)
        assert not set(elsewhere) & {*six, *others}
        in_use = crl_shards.ensure(connection, "batch", HERE, 1)
        assert crl_shards.needed(connection, "batch", in_use, fleet.clock()) == in_use, "nobody has the others' URLs"

    await fleet.database.write(change)


async def test_one_that_the_store_has_lost_is_where_certificates_say_unless_another_has_got_its_number(
    fleet: Fleet,
) -> None:
    def look(connection: Connection) -> list[str | None]:
        crl_shards.ensure(connection, "issuing-ca", "http://ca.example.org", 2)
        every = ["issuing-ca-2", "issuing-ca-7", "issuing-ca-7", "issuing-ca", "other-8", "issuing-ca-07"]
        found = [crl_shards.lost(connection, "issuing-ca", f"http://ca.example.org/crl/{each}.crl") for each in every]
        found.append(crl_shards.lost(connection, "other", "http://ca.example.org/crl/other-7.crl"))
        return [None if each is None else each.name for each in found]

    found = await fleet.database.write(look)
    assert found == ["issuing-ca-2", "issuing-ca-7", "issuing-ca-7", None, None, None, None]
