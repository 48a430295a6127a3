"""Enforcement on clients whose certificates are no longer trusted.

Rules
-----
1. A revocation is in the index before anybody is disconnected for it: a client that reconnects at once is refused.
2. The will is dropped together with the certificate, whether the CA revokes it or the operator changes the trust
   settings, unless the operator keeps wills (`keeps_revoked`): nothing vouches for its author any more. An expired
   certificate was valid until then, and its client's will is sent (decision 0143). A will that waits for its delay
   depends on its certificate until then (`broker.engine.engine`).
3. The session of a revoked certificate is dropped too. If it was suspended or superseded, if a CA was revoked, or the
   trust settings were changed, the client may return to its session.
4. The same applies if it was revoked between two processes of the broker, and its client was connected until the first
   one ended.
5. What waits in the broker for a client that does not keep up is not sent any more: it reads as slowly as it likes,
   and would be sent megabytes after its revocation. It is reset, and not told why.
6. No I/O, no clock.
"""

from __future__ import annotations

from dataclasses import replace

from broker.admission.peer import Peer
from broker.admission.refusal import RefusalCode, Refused
from broker.admission.status import revoked
from broker.engine.client import Client
from broker.engine.engine import Engine
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


def distrust(engine: Engine, connection: Client, refusal: Refused, now: float) -> None:
    """Close *connection*, whose certificate new trust settings refuse with *refusal*."""
    why = replace(refusal, detail=f"the trust settings have changed: {refusal.detail}")
    # Whoever may be admitted again is not told otherwise. A DISCONNECT cannot say "unavailable": MQTT 5 §3.14.2.1.
    later = refusal.reason_code is ReasonCode.SERVER_UNAVAILABLE
    _put_out(engine, connection, why, now, ReasonCode.SERVER_BUSY if later else ReasonCode.NOT_AUTHORIZED)


def sends_will(engine: Engine, refusal: Refused) -> bool:
    """Whether the will of a client disconnected with *refusal* of its certificate is sent."""
    return engine.keeps_revoked or refusal.code is RefusalCode.EXPIRED


def absent(engine: Engine) -> list[Session]:
    """Return the sessions whose clients were connected when the previous process ended, and are not back yet."""
    return [each for each in engine.registry.all() if each.connection is None and each.certificate is not None]


def forget_revoked(engine: Engine, session: Session, now: float) -> None:
    """Drop the will of *session*, which is `absent`, if its certificate is not trusted; end it if that is revoked."""
    if session.connection is None and engine.registry.has(session) and engine.counts_no_more(session):
        session.will = None
        engine.returning.forget(session)
        engine.note(session, session.expires_at - session.expiry_interval)
        if session.certificate is not None and engine.admission.status.is_ended(session.certificate):
            engine.forget(session, now)


def renew(engine: Engine, connection: Client, peer: Peer, now: float) -> None:
    """Update the connected client's *peer*: the same certificate, examined again."""
    before = connection.peer
    if before is None or connection.session is None:
        return
    if before.certificate != peer.certificate:  # Its issuer is now identified by the issuer's own key.
        engine.live.remove(before.certificate, connection)
        engine.live.add(peer.certificate, connection)
    connection.examined(peer, now)
    engine.admission.stays(peer)
    session = connection.session
    if session.will is not None:  # In any case: its CAs would keep an earlier generation of trust in memory.
        session.will = replace(
            session.will, certificate=peer.certificate, authorities=peer.authorities, above=peer.above
        )
    if (session.certificate, session.authorities) == (peer.certificate, peer.authorities):
        return
    session.certificate, session.authorities = peer.certificate, peer.authorities
    engine.note(session, None)  # The stored state is used to judge it if the broker is killed.


def _put_out(
    engine: Engine,
    connection: Client,
    refusal: Refused,
    now: float,
    reason: ReasonCode = ReasonCode.ADMINISTRATIVE_ACTION,
) -> None:
    """Close *connection*, whose certificate is no longer trusted; drop will and session, unless `keeps_revoked`."""
    peer, session, keeps = connection.peer, connection.session, engine.keeps_revoked
    will = sends_will(engine, refusal)
    connection.disconnect(refusal.code, reason, refusal.detail, now, publish_will=will, withhold=True)
    if keeps or peer is None or session is None or not engine.registry.has(session):
        return  # Most sessions end with their connection.
    if engine.admission.status.is_ended(peer.certificate):
        engine.forget(session, now)
