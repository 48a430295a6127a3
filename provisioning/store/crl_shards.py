"""Queries about CRL shards: each one's URL, and which are still needed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import bindparam, func, insert, or_, select
from sqlalchemy.engine import Connection

from provisioning.store.prepared import Prepared
from provisioning.store.tables import certificates, crl_shards

_NUMBERED: Final = re.compile(r"\S{1,450}/crl/(?P<issuer>\S+)-(?P<number>[1-9][0-9]{0,8})\.crl", re.ASCII)

_OF_CERTIFICATE: Final = Prepared(
    select(certificates.c.crl_shard_id).where(certificates.c.id == bindparam("wanted")), at_once=True
)


@dataclass(frozen=True, slots=True)
class CrlShard:
    """One part of an issuer's CRL."""

    id: int
    issuer: str
    url: str

    @property
    def name(self) -> str:
        """What the list is called in its URL."""
        return shard_name(self.issuer, self.id)


def shard_name(issuer: str, identifier: int) -> str:
    """Return what a shard's list is called."""
    return f"{issuer}-{identifier}"


def ensure(connection: Connection, issuer: str, origin: str, count: int) -> list[CrlShard]:
    """Return *count* shards of *issuer* under the URL *origin*, creating those that are missing."""
    prefix = f"{origin}/crl/{issuer}-"
    held = [each for each in _all(connection, issuer) if each.url.startswith(prefix)][:count]
    highest = connection.execute(select(func.coalesce(func.max(crl_shards.c.id), 0))).scalar_one()
    for identifier in range(highest + 1, highest + 1 + count - len(held)):
        shard = CrlShard(identifier, issuer, f"{origin}/crl/{shard_name(issuer, identifier)}.crl")
        connection.execute(insert(crl_shards).values(id=shard.id, issuer=issuer, url=shard.url))
        held.append(shard)
    return held


def needed(connection: Connection, issuer: str, in_use: Sequence[CrlShard], since: datetime) -> list[CrlShard]:
    """Return the shards *in_use* and those with certificates that had not expired at *since*."""
    alive = select(certificates.c.crl_shard_id).where(
        certificates.c.not_after > since, certificates.c.crl_shard_id.is_not(None)
    )  # By the index alone, once for all shards.
    statement = (
        select(crl_shards)
        .where(
            crl_shards.c.issuer == issuer,
            or_(crl_shards.c.id.in_([each.id for each in in_use]), crl_shards.c.id.in_(alive.distinct())),
        )
        .order_by(crl_shards.c.id)
    )
    return [CrlShard(row.id, row.issuer, row.url) for row in connection.execute(statement)]


def lost(connection: Connection, issuer: str, url: str) -> CrlShard | None:
    """Return the shard of *issuer* at *url*, recorded now if the store has lost it; None if it is none of this form.

    Also None if another shard has its number by now: the issuer's complete list then has what belongs to it.
    """
    found = next((each for each in _all(connection, issuer) if each.url == url), None)
    named = _NUMBERED.fullmatch(url)
    if found is not None or named is None or named["issuer"] != issuer:
        return found
    shard = CrlShard(int(named["number"]), issuer, url)
    if connection.execute(select(crl_shards.c.id).where(crl_shards.c.id == shard.id)).first() is not None:
        return None
    connection.execute(insert(crl_shards).values(id=shard.id, issuer=issuer, url=url))
    return shard


def of_certificates(connection: Connection, certificate_ids: Sequence[int]) -> Mapping[int, int | None]:
    """Return which shard each of these certificates belongs to, None if to none."""
    return {certificate_ids[place - 1]: shard for shard, place in _OF_CERTIFICATE.placed(connection, certificate_ids)}


def _all(connection: Connection, issuer: str) -> list[CrlShard]:
    statement = select(crl_shards).where(crl_shards.c.issuer == issuer).order_by(crl_shards.c.id)
    return [CrlShard(row.id, row.issuer, row.url) for row in connection.execute(statement)]
