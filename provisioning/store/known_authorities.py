"""Queries about brokers' reports: which of the fleet's issuing CAs each of them would trust.

Theory
------
A broker that follows the feed is told of every issuing CA that is announced, active or retiring, compares them with
its own trust anchors, and reports the result: when it starts, whenever it changes, and every hour. So a running
broker's report is at most an hour old; the cause of an older one may have been corrected since.

Rules
-----
1. A broker's report replaces all its earlier ones.
2. Reports play no part in admitting devices: they are for operators, and for the activation of a CA.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import delete, insert, select
from sqlalchemy.engine import Connection

from provisioning.store.tables import authorities, devices, known_authorities

LATELY: Final = timedelta(days=7)
"""A broker that has been silent for longer may be gone; one that comes back reports again."""


@dataclass(frozen=True, slots=True)
class BrokersWord:
    """One broker's report on one CA; *known* is None if it reported others only: it has not been told of this one."""

    broker: str
    authority: str
    state: str
    known: bool | None
    said_at: datetime

    def is_recent(self, now: datetime) -> bool:
        """Whether the broker has reported recently."""
        return now - self.said_at <= LATELY


def record(connection: Connection, device_id: int, known: Mapping[str, bool], now: datetime) -> None:
    """Record which CAs, by name, a broker would trust and which not; unknown names are skipped."""
    connection.execute(delete(known_authorities).where(known_authorities.c.device_id == device_id))
    found = connection.execute(
        select(authorities.c.id, authorities.c.name).where(authorities.c.name.in_(sorted(known)))
    )
    rows = [{"device_id": device_id, "authority_id": row.id, "known": known[row.name], "said_at": now} for row in found]
    if rows:
        connection.execute(insert(known_authorities), rows)


def unknown(connection: Connection) -> Sequence[BrokersWord]:
    """Return which brokers in force have reported that they would not trust a CA that issues, or is to issue."""
    statement = (
        select(devices.c.name, authorities.c.name, authorities.c.state, known_authorities.c.said_at)
        .select_from(known_authorities.join(devices).join(authorities))
        .where(
            known_authorities.c.known.is_(False),
            authorities.c.state.in_(["announced", "active", "retiring"]),
            *_IN_FORCE,
        )
        .order_by(authorities.c.id, devices.c.name)
    )
    return [
        BrokersWord(broker, authority, state, known=False, said_at=said_at)
        for broker, authority, state, said_at in connection.execute(statement)
    ]


def of_authority(connection: Connection, name: str) -> Sequence[BrokersWord]:
    """Return the report on the CA called *name* of every broker in force that has ever reported."""
    statement = (
        select(
            devices.c.name, authorities.c.name, authorities.c.state, known_authorities.c.known,
            known_authorities.c.said_at,
        )
        .select_from(known_authorities.join(devices).join(authorities))
        .where(*_IN_FORCE)
        .order_by(devices.c.name)
    )  # fmt: skip
    words: dict[str, BrokersWord] = {}
    for broker, authority, state, known, said_at in connection.execute(statement):
        if authority == name:
            words[broker] = BrokersWord(broker, name, state, known, said_at)
        else:
            words.setdefault(broker, BrokersWord(broker, name, "", None, said_at))
    return list(words.values())


_IN_FORCE: Final = (
    devices.c.revoked_at.is_(None),
    devices.c.suspended_at.is_(None),
    devices.c.decommissioned_at.is_(None),
)
