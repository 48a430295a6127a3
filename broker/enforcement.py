"""Certificates that count no more, against those who are connected with them.

Rules
-----
1. A revocation is in the index before anybody is put out for it: who comes back at once is refused.
2. The will and the session of a revoked certificate go with it, unless the operator has them kept (`keeps_revoked`);
   who is suspended, or whose CA is revoked, may come back to them.
3. So they do when it was revoked between two processes of the broker, and its client was connected until the first one
   ended.
4. No I/O, no clock.
"""

from __future__ import annotations

from broker.admission.peer import Peer
from broker.admission.refusal import Refused
from broker.admission.status import revoked
from broker.client import Client
from broker.engine import Engine
from broker.mqtt.codes import ReasonCode
from broker.session.session import Session
from provisioning.pki.revocation import Revocation


def revoke(engine: Engine, revocation: Revocation, now: float) -> int:
    """Record *revocation* and close the live sessions of its certificate; return how many."""
    if engine.admission.status.index.add(revocation):
        engine.metrics.revocations += 1
    connections = engine.live.of(revocation.key)
    refusal = revoked(revocation)
    for connection in connections:
        _put_out(engine, connection, refusal, now)
    return len(connections)


def enforce(engine: Engine, connection: Client, now: float) -> bool:
    """Close *connection* if its certificate, or a CA's above it, is revoked by now; return whether it was closed."""
    peer = connection.peer
    refusal = engine.admission.status.refuse_revoked(peer) if peer is not None else None
    if refusal is None or connection.session is None:
        return False
    _put_out(engine, connection, refusal, now)
    return True


def absent(engine: Engine) -> list[Session]:
    """Return the sessions whose clients were connected when the broker before ended, and have not come back."""
    return [each for each in engine.registry.all() if each.connection is None and each.certificate is not None]


def forget_revoked(engine: Engine, session: Session, now: float) -> None:
    """End *session*, which is `absent`, if its certificate is revoked by now."""
    if session.connection is None and engine.registry.has(session) and engine.was_revoked(session):
        session.will = None
        engine.returning.forget(session)
        engine.note(session, session.expires_at - session.expiry_interval)
        if session.certificate is not None and engine.admission.status.is_ended(session.certificate):
            engine.forget(session, now)


def renew(engine: Engine, connection: Client, peer: Peer, now: float) -> None:
    """Let *peer* be who is connected: the same, examined again."""
    before = connection.peer
    if before is None or connection.session is None:
        return
    if before.certificate != peer.certificate:  # Its issuer is known by its own key now.
        engine.live.remove(before.certificate, connection)
        engine.live.add(peer.certificate, connection)
    connection.examined(peer, now)
    connection.session.certificate = peer.certificate


def _put_out(engine: Engine, connection: Client, refusal: Refused, now: float) -> None:
    """Close *connection*, whose certificate counts no more; its will and session go too, or `keeps_revoked`."""
    peer, session, keeps = connection.peer, connection.session, engine.keeps_revoked
    reason = ReasonCode.ADMINISTRATIVE_ACTION
    connection.disconnect(refusal.code, reason, refusal.detail, now, publish_will=keeps)
    if not keeps and peer is not None and session is not None and engine.admission.status.is_ended(peer.certificate):
        engine.forget(session, now)
