"""What brokers have said of the fleet's CAs: the last word of each counts, of whoever is still one of the fleet."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from functools import partial

from sqlalchemy import select, update
from sqlalchemy.engine import Connection

from provisioning.enrolment.attempt import TokenCredential
from provisioning.pki.role import Role
from provisioning.store import authorities, known_authorities
from provisioning.store.authorities import AuthorityKind, AuthorityState
from provisioning.store.known_authorities import BrokersWord
from provisioning.store.tables import devices
from tests.support.fleet import Fleet
from tests.support.requests import NOON, csr_der


async def says(fleet: Fleet, broker: str, known: Mapping[str, bool]) -> None:
    """Let *broker*, enrolled if it is not yet, say what it knows."""

    def number(connection: Connection) -> int | None:
        return connection.execute(select(devices.c.id).where(devices.c.name == broker)).scalar()

    if await fleet.database.read(number) is None:
        token = TokenCredential(broker, await fleet.token(broker, None, Role.BROKER))
        await fleet.enrolment.enrol(csr_der(names=[broker]), token)
    found = await fleet.database.read(number)
    assert found is not None
    now = fleet.clock()
    await fleet.database.write(lambda connection: known_authorities.record(connection, found, known, now))


async def test_the_last_word_of_each_broker_counts(fleet: Fleet) -> None:
    authority = fleet.authority
    await fleet.database.write(
        lambda connection: authorities.add(
            connection, "issuing-2", AuthorityKind.ISSUING, AuthorityState.ANNOUNCED,
            authority.root_ca.certificate, NOON,
        )
    )  # fmt: skip
    await says(fleet, "broker-1", {"issuing-ca": True, "issuing-2": False, "nobody": False})
    await says(fleet, "broker-2", {"issuing-ca": True})
    word = BrokersWord("broker-1", "issuing-2", "announced", False, NOON)
    assert await fleet.database.read(known_authorities.unknown) == [word]

    def of_second(connection: Connection) -> list[tuple[str, bool | None]]:
        return [(each.broker, each.known) for each in known_authorities.of_authority(connection, "issuing-2")]

    assert await fleet.database.read(of_second) == [("broker-1", False), ("broker-2", None)]
    assert (word.is_recent(NOON + timedelta(days=7)), word.is_recent(NOON + timedelta(days=8))) == (True, False)

    for state, words in ((AuthorityState.RETIRED, 0), (AuthorityState.REVOKED, 0), (AuthorityState.RETIRING, 1)):
        await fleet.database.write(partial(authorities.set_state, name="issuing-2", state=state, now=fleet.clock()))
        assert len(await fleet.database.read(known_authorities.unknown)) == words, "of a CA that issues nothing"

    await says(fleet, "broker-1", {"issuing-ca": True, "issuing-2": True})
    assert await fleet.database.read(known_authorities.unknown) == []
    await says(fleet, "broker-2", {"issuing-2": False})
    now = fleet.clock()
    await fleet.database.write(
        lambda connection: connection.execute(
            update(devices).where(devices.c.name == "broker-2").values(decommissioned_at=now)
        )
    )
    assert await fleet.database.read(known_authorities.unknown) == []
    assert await fleet.database.read(of_second) == [("broker-1", True)]
