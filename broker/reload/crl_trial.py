"""What a CRL would do if it were installed now: whom it would disconnect, or why it would not be used.

Theory
------
The list goes through the same checks as one that is read or fetched (`broker.sources.crl_intake`), up to the point
where it would be held. Then every connection is checked: whether its certificate, or a CA's above it, is in the list
and not already revoked. Nothing is held, nobody is disconnected, nothing is counted.

Rules
-----
1. Lists tried together are tried in order, complete ones before deltas: a delta continues the base that comes with it,
   and its result is what both would do.
2. A thousand connections at a time, with the event loop in between.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from broker.admission.crl_shelf import CrlShelf
from broker.admission.held_list import HeldList
from broker.admission.peer import Peer
from broker.admission.trust import Trust
from broker.engine.engine import Engine
from broker.reload.report import SHOWN, Affected
from broker.sources.crl_intake import PAUSE, signer_of
from provisioning.pki.crl import CertificateList, CrlRefused, parse, split
from provisioning.pki.serial_number import serial_text
from provisioning.program.printable import printable

_CONNECTIONS_A_STEP = 1000


class NoListsUsed(ValueError):
    """The broker uses no CRLs, so none can be tried; the text names the setting that changes that."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What one list would do."""

    used: bool
    """Whether it would be held."""
    code: str = ""
    """If not, why: CRL_… as in the log, or CRL_KNOWN; or what the log would say all the same."""
    detail: str = ""
    issuer: str = ""
    number: int | None = None
    base_number: int | None = None
    """Number of the complete list that a delta continues: the result is what both do."""
    entries: int = 0
    next_update: datetime | None = None
    newly_revoked: int = 0
    released: int = 0
    connected: int = 0
    disconnected: int = 0
    affected: tuple[Affected, ...] = ()
    """The first of those who would be disconnected."""

    @property
    def _base(self) -> str:
        return "" if self.base_number is None else f" (a delta, with its base {self.base_number})"

    def __str__(self) -> str:
        if not self.used:
            return f"would not be used: {self.code}: {self.detail}"
        text = (
            f"list {self.number}{self._base} of {self.issuer}, {self.entries:,} entries: "
            f"revokes {self.newly_revoked:,}, releases {self.released:,}; "
            f"would disconnect {self.disconnected:,} of {self.connected:,} clients"
        )
        if self.affected:
            text += ": " + "; ".join(f"{printable(each.client_id)} ({each.why})" for each in self.affected)
            text += "; …" if self.disconnected > len(self.affected) else ""
        return f"{text}; {self.code}: {self.detail}" if self.code else text


async def try_lists(engine: Engine, content: bytes) -> list[Trial]:
    """Return what each list in *content*, PEM or DER, would do. Raises `NoListsUsed`."""
    trust = engine.admission.trust
    if trust is None or all(each.lists is None for each in trust.bundles):
        raise NoListsUsed("this broker uses no CRLs: crlfile, crl_urls and crl_from_certificates are unset")
    try:
        ders = await asyncio.to_thread(split, content, lambda: time.sleep(PAUSE))
    except CrlRefused as error:
        return [Trial(used=False, code=error.code, detail=error.detail)]
    trials: dict[int, Trial] = {}
    lists: list[tuple[int, CertificateList]] = []
    for place, der in enumerate(ders):
        try:
            lists.append((place, await asyncio.to_thread(parse, der)))
        except CrlRefused as error:
            trials[place] = Trial(used=False, code=error.code, detail=error.detail)
    shelf = engine.admission.status.lists.trial()
    for place, listed in sorted(lists, key=lambda each: each[1].base_number is not None):
        trials[place] = await _try(engine, trust, shelf, listed)
    return [trials[place] for place in range(len(ders))]


async def _try(engine: Engine, trust: Trust, shelf: CrlShelf, listed: CertificateList) -> Trial:
    def prepare() -> tuple[HeldList | None, CrlRefused | None]:
        issuer, now = signer_of(listed, trust), datetime.now(UTC)
        contradiction = shelf.contradiction(issuer[0], listed, now)
        return shelf.prepare(listed, issuer, "a dry run", now, lambda: time.sleep(PAUSE)), contradiction

    try:
        held, contradiction = await asyncio.to_thread(prepare)
    except CrlRefused as error:
        return Trial(used=False, code=error.code, detail=error.detail)
    if held is None:
        if contradiction is not None:
            return Trial(used=False, code=contradiction.code, detail=contradiction.detail)
        return Trial(used=False, code="CRL_KNOWN", detail="this list, or a newer one, is in use")
    shelf.set_aside(held)
    before = engine.admission.status.index.listed(held.issuer_key_id, held.complete.scope)
    added = held.added_to(before)
    connections = engine.connections()
    disconnected = 0
    affected: list[Affected] = []
    for start in range(0, len(connections), _CONNECTIONS_A_STEP):
        for connection in connections[start : start + _CONNECTIONS_A_STEP]:
            session, peer = connection.session, connection.peer
            why = _named(engine, held, peer) if session is not None and peer is not None else None
            if why is not None and session is not None:
                disconnected += 1
                if len(affected) < SHOWN:
                    affected.append(Affected(session.client_id, session.owner.uri, why))
        await asyncio.sleep(0)
    return Trial(
        used=True,
        code="" if contradiction is None else contradiction.code,
        detail="" if contradiction is None else contradiction.detail,
        issuer=held.issuer,
        number=held.number,
        base_number=held.complete.number if held.delta is not None else None,
        entries=len(held.entries),
        next_update=held.fresh_until,
        newly_revoked=len(added),
        released=len(before) + len(added) - len(held.entries),
        connected=len(connections),
        disconnected=disconnected,
        affected=tuple(affected),
    )


def _named(engine: Engine, held: HeldList, peer: Peer) -> str | None:
    """Return why *peer*, who is valid now, would be disconnected because of *held*, or None."""
    if engine.admission.status.refuse_revoked(peer) is not None:
        return None
    issuer_key_id, serial = peer.certificate
    if issuer_key_id == held.issuer_key_id and serial in held.entries:
        return f"certificate {serial_text(serial)} revoked"
    authority = peer.issuer
    while authority is not None and (above := authority.above) is not None:
        if above.key_id == held.issuer_key_id and authority.certificate.serial_number in held.entries:
            return f"the CA {authority.subject} revoked"
        authority = above
    return None
