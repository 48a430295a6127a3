"""Answers to a client: the acknowledgement of a stored PUBLISH, refusals while the store fails, and reasons in words.

Hot: `pinged`. Budget: 0.3 µs of CPU time, in plain Python; benchmarks/hot_calls.py measures it. Slow twin: what
`broker.connection.connection` does with a PINGREQ among other packets; tests/properties/test_fast_path_properties.py.

Rules
-----
1. Nothing is acknowledged before it is stored (decision 0013). A message that was routed is never refused, and a
   refused message was never routed (decision 0094).
2. A reason string is sent only to a client that asks for it, and only within its Maximum Packet Size.

Does not handle: what delays an answer, and what happens to it then (`broker.store.journal`).
"""

from __future__ import annotations

from dataclasses import replace

from broker.connection.authorization import UNSTORABLE, Refusal
from broker.engine.client import Client
from broker.engine.engine import Engine
from broker.mqtt.acks import Puback, Pubrec
from broker.mqtt.codes import ProtocolVersion, QoS, ReasonCode
from broker.mqtt.properties import Properties
from broker.mqtt.publication import Publish
from broker.mqtt.publish import PINGREQ, PINGRESP
from broker.mqtt.subscribe import Suback
from broker.session.session import Session
from broker.store.batch import Otherwise
from broker.store.owed import Again


def pinged(engine: Engine, session: Session | None, data: bytes) -> bool:
    """Answer *data*, two bytes from a client without a meter, if it is a lone PINGREQ; return whether it was.

    This is what an idle fleet sends, and the CPU caches are cold each time. It does what `broker.connection.connection`
    does with a PINGREQ among other packets, without that function's preparations.
    """
    journal = engine.journal
    if data != PINGREQ or session is None or engine.replays.waiting or (journal is not None and journal.dirty):
        return False
    metrics = engine.metrics
    metrics.packets_received += 1
    metrics.bytes_received += len(data)
    session.outbox.append(PINGRESP)
    engine.turn.sessions.add(session)
    return True


def acknowledge(
    engine: Engine, connection: Client, session: Session, packet_id: int, refusal: Refusal | None, *, exactly_once: bool
) -> None:
    """Answer a PUBLISH when its effects are stored; see `broker.store.journal` for what happens if they cannot be."""
    v5 = connection.version is ProtocolVersion.V5
    kind = Pubrec if exactly_once else Puback
    # MQTT 3.1.1 cannot refuse: a message without permission is acknowledged and discarded (3.1.1 §3.3.5.2).
    refused = v5 and refusal is not None
    otherwise: bytes | Otherwise = Otherwise.CLOSE
    if exactly_once and not refused:
        session.note_incoming(packet_id, known=True)
        otherwise = Otherwise.WAIT
    elif v5 and not refused:
        otherwise = Otherwise.WAIT  # It was routed: a client told of a refusal would see it delivered all the same.
    elif v5:
        otherwise = kind(packet_id, ReasonCode.QUOTA_EXCEEDED).encode(connection.version)
    engine.answer(connection, explained_packet(connection, session, kind(packet_id), refusal), otherwise)


def explained_packet(
    connection: Client, session: Session, packet: Puback | Pubrec | Suback, refusal: Refusal | None
) -> bytes:
    """Return *packet* with the reason of *refusal*; in words if the client asks for them and the packet is not too big.

    A SUBACK already has its reason codes.
    """
    version = connection.version
    if refusal is None or version is not ProtocolVersion.V5:
        return packet.encode(version)
    reason, text = refusal
    if not isinstance(packet, Suback):
        packet = replace(packet, reason_code=reason)
    if connection.explains:
        explained = replace(packet, properties=Properties(reason_string=f"{reason.name}: {text}")).encode(version)
        most = session.framing.maximum_packet_size
        if not 0 < most < len(explained):  # [MQTT-3.4.2-2], [MQTT-3.5.2-2], [MQTT-3.9.2-1]
            return explained
    return packet.encode(version)


def answer_unstorable(engine: Engine, connection: Client, session: Session, packet: Publish, now: float) -> bool:
    """Answer *packet* and return True if the failing store prevents it from being routed.

    A message that is sent again may have been routed before, one at QoS 2 by a broker that was killed before it had
    stored that. So it is not refused: its answer waits, and it is routed once more (decision 0094).
    """
    journal, packet_id = engine.journal, packet.packet_id
    if journal is None or packet_id is None:
        return False
    again = packet.dup and connection.version is ProtocolVersion.V5
    if again and packet.qos is QoS.EXACTLY_ONCE:  # That it was is in `Session.incoming` from now on.
        return False
    if again:
        known = journal.owe(session, packet_id, connection)
        if known is Again.UNANSWERED:
            engine.answer(connection, Puback(packet_id).encode(connection.version), Otherwise.WAIT)
        return known is not Again.NEW
    journal.use_anew(session, packet_id)
    _refuse(connection, session, packet, now)
    return True


def _refuse(connection: Client, session: Session, packet: Publish, now: float) -> None:
    """Refuse a message while the store cannot be written: nothing is acknowledged before that (decision 0013)."""
    if connection.version is not ProtocolVersion.V5 or packet.packet_id is None:
        session.unanswered(now)
        return
    kind = Pubrec if packet.qos is QoS.EXACTLY_ONCE else Puback
    connection.reply(explained_packet(connection, session, kind(packet.packet_id), UNSTORABLE))
