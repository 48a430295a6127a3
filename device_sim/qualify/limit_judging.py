"""How a device keeps to what the broker announces in CONNACK, and what it does with what is under way.

Rules
-----
1. No I/O and no clock.
2. What MQTT 3.1.1 cannot announce is skipped for a device that speaks it.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

from broker.mqtt.codes import ProtocolVersion, QoS
from broker.mqtt.packets import Packet, Puback, Pubcomp, Publish, Pubrec, Pubrel
from device_sim.attack.verdict import Verdict
from device_sim.qualify.attempt import Attempt
from device_sim.qualify.judging import LEAVES, MAY_LEAVE, TO_RESEND, Line, line_of, missed, said_goodbye, skipped

_KEEP_ALIVE_FACTOR = 1.5
_LATE = 0.7
"""Seconds that a packet may be late on its way to the stand, on a busy machine."""
_SHOWN = 3
_OLDER = "it speaks MQTT 3.1.1, in which a broker cannot say it"
_NOT_SERVED = "it was never served"


def _served(attempts: Sequence[Attempt]) -> list[Attempt]:
    return [attempt for attempt in attempts if attempt.answered is not None]


def keeps_limits(attempts: Sequence[Attempt], window: float, *, ended: bool) -> list[Line]:
    """Judge a device that was told a Receive Maximum and a Server Keep Alive, and gets no acknowledgement.

    *ended*: it has ended by itself; otherwise it was watched for *window* seconds from its first connection on.
    """
    served = _served(attempts)
    if not served:
        return [missed("receive-maximum", "keeps to the broker's limits", _NOT_SERVED)]
    return [
        _receive_maximum(served),
        _server_keep_alive(served[0], attempts[0].at + window, ended=ended),
        _identifiers(served),
        _sends_once(served),
    ]


def _receive_maximum(served: Sequence[Attempt]) -> Line:
    right = "has no more messages under way than the broker's Receive Maximum"
    if not served[0].v5:
        return skipped("receive-maximum", right, _OLDER)
    most = max(len({packet.packet_id for packet in attempt.published}) for attempt in served)
    connack = served[0].connack
    limit = connack.properties.receive_maximum if connack is not None else None
    if limit is None:
        raise ValueError("the stand announced no Receive Maximum")
    if most < limit:
        return missed("receive-maximum", right, f"it had {most} under way at most, {limit} were allowed")
    seen = f"{most} under way, {limit} allowed"
    return line_of("receive-maximum", right, good=most <= limit, seen=seen, why="[MQTT-3.3.4-7]", lucky=0.0)


def _server_keep_alive(first: Attempt, watched_until: float, *, ended: bool) -> Line:
    right = "sends something within the Server Keep Alive"
    if not first.v5:
        return skipped("server-keep-alive", right, _OLDER)
    connect, connack = first.connect, first.connack
    told = connack.properties.server_keep_alive if connack is not None else None
    if told is None or connect is None or first.answered is None:
        raise ValueError("the stand set no keep alive")
    if 0 < connect.keep_alive <= told:
        return skipped(
            "server-keep-alive", right, f"its own of {connect.keep_alive} s is as short as a broker's can be"
        )
    times = [first.answered, *(at for at, _ in first.packets if at > first.answered)]
    end = first.ended
    if end is None and not ended:
        end = watched_until
    silent = max(
        (later - earlier for earlier, later in itertools.pairwise([*times, *([end] if end else [])])), default=0
    )
    allowed = _KEEP_ALIVE_FACTOR * told + _LATE
    if end is not None and end - first.answered < allowed:
        return missed("server-keep-alive", right, "its connection was too short to tell")
    seen = f"silent for {silent:.1f} s at most; it was told {told} s instead of its {connect.keep_alive} s"
    return line_of(
        "server-keep-alive", right, good=silent <= allowed, seen=seen, why="[MQTT-3.1.2-21]: it is put out",
        late=silent - allowed,
    )  # fmt: skip


def _identifiers(served: Sequence[Attempt]) -> Line:
    right = "gives each message under way a packet identifier of its own"
    for attempt in served:
        known: dict[int | None, tuple[str, bytes]] = {}
        for packet in attempt.published:
            before = known.setdefault(packet.packet_id, (packet.topic, packet.payload))
            if before != (packet.topic, packet.payload):
                seen = f"two messages with identifier {packet.packet_id}"
                why = "[MQTT-2.2.1-3]: the acknowledgement of one is taken for the other's"
                return Line("packet-identifiers", right, Verdict.FAIL, seen, why)
    if not any(len(attempt.published) > 1 for attempt in served):
        return missed("packet-identifiers", right, "it had one message under way at most")
    return Line("packet-identifiers", right, Verdict.PASS, "different ones")


def _sends_once(served: Sequence[Attempt]) -> Line:
    right = "sends a message again only on a new connection"
    again = 0
    for attempt in served:
        counted = Counter((each.packet_id, each.payload) for each in attempt.published)
        again = max([again, *counted.values()])
    if again == 0:
        return missed("sends-once", right, "it published nothing with QoS 1 or 2")
    v5 = served[0].v5
    why = "[MQTT-4.4.0-1]" if v5 else "a slow broker gets slower, and its subscribers get it more than once"
    otherwise = Verdict.FAIL if v5 else Verdict.WARN
    seen = f"{again} times on one connection" if again > 1 else "once"
    return line_of("sends-once", right, good=again == 1, seen=seen, why=why, otherwise=otherwise, lucky=0.0)


def keeps_packets_small(attempts: Sequence[Attempt]) -> list[Line]:
    """Judge a device whose broker takes only small packets."""
    right = "sends no packet beyond the broker's Maximum Packet Size"
    served = _served(attempts)
    if not served:
        return [missed("maximum-packet-size", right, _NOT_SERVED)]
    if not served[0].v5:
        return [skipped("maximum-packet-size", right, _OLDER)]
    connack = served[0].connack
    limit = connack.properties.maximum_packet_size if connack is not None else None
    if limit is None:
        raise ValueError("the stand announced no Maximum Packet Size")
    largest = max(
        (len(packet.encode(ProtocolVersion.V5)) for a in served for at, packet in a.packets if at > (a.answered or 0)),
        default=0,
    )
    seen = f"{largest} bytes at most, {limit} allowed"
    return [
        line_of(
            "maximum-packet-size", right, good=largest <= limit, seen=seen, why="[MQTT-3.2.2-15]: it is put out",
            lucky=0.0,
        )
    ]  # fmt: skip


def keeps_aliases(attempts: Sequence[Attempt], *, essential: bool = True) -> list[Line]:
    """Judge how a device uses topic aliases; a device that uses none is not mentioned unless it is *essential*."""
    right = "uses topic aliases as announced, and anew on each connection"
    served = _served(attempts)
    used = False
    for number, attempt in enumerate(served):
        known: set[int] = set()
        most = (attempt.connack.properties.topic_alias_maximum if attempt.connack is not None else None) or 0
        for packet in (packet for _, packet in attempt.packets if isinstance(packet, Publish)):
            alias = packet.properties.topic_alias
            if alias is None:
                continue
            used = True
            if alias > most:
                seen = f"alias {alias}, {most} allowed on connection {number + 1}"
                return [Line("topic-aliases", right, Verdict.FAIL, seen, "[MQTT-3.3.2-9]: it is put out")]
            if packet.topic:
                known.add(alias)
            elif alias not in known:
                seen = f"alias {alias} without a topic on connection {number + 1}"
                return [
                    Line("topic-aliases", right, Verdict.FAIL, seen, "[MQTT-3.3.2-7]: aliases end with a connection")
                ]
    if used and essential and len(served) == 1:
        return [missed("topic-aliases", right, "it did not come again")]
    if used and essential and not any(isinstance(packet, Publish) for a in served[1:] for _, packet in a.packets):
        return [missed("topic-aliases", right, "it published nothing when it came again; give a longer --window")]
    if used:
        return [Line("topic-aliases", right, Verdict.PASS, f"{len(served)} connections", by_time=0.0)]
    return [missed("topic-aliases", right, "it uses no topic aliases")] if essential else []


def takes_commands(attempts: Sequence[Attempt], *, leaves: bool | None = False) -> list[Line]:
    """Judge how a device takes what the broker sends it.

    *leaves*: it leaves who sends it nothing, too; None: perhaps.
    """
    served = _served(attempts)
    acknowledged = "acknowledges each command as its QoS asks"
    given = next((a for a in served if any(isinstance(each, Publish) for each in a.sent)), None)
    if given is None:
        return [missed("acknowledges", acknowledged, "it subscribes to nothing")]
    sent = [each for each in given.sent if isinstance(each, Publish)]
    taken = _takes_payload(given, len(sent), leaves)
    if not any(each.qos for each in sent):
        return [taken, skipped("acknowledges", acknowledged, "it subscribes with QoS 0")]
    missing = _missing_acknowledgements(given, sent)
    told = f"missing: {', '.join(missing[:_SHOWN])}{', …' if len(missing) > _SHOWN else ''}" if missing else "all"
    why = "[MQTT-4.3.2-4], [MQTT-4.3.3-8]: the broker keeps it, and sends it again and again"
    return [taken, line_of("acknowledges", acknowledged, good=not missing, seen=told, why=why, late=0.0)]


def _takes_payload(given: Attempt, commands: int, leaves: bool | None) -> Line:
    """Judge whether the device stays on the connection on which it is *given* so many *commands*."""
    right = "takes any payload"
    stayed = given.ended is None or not given.by_device
    if not stayed and leaves is not False and said_goodbye(given):
        return skipped("takes-commands", right, LEAVES if leaves else f"{MAY_LEAVE}commands")
    why = given.noise or "it ended the connection on which they came"
    return line_of("takes-commands", right, good=stayed, seen=f"{commands} commands sent", why=why, lucky=0.0)


def _missing_acknowledgements(given: Attempt, sent: Sequence[Publish]) -> list[str]:
    """Return which packets the device owes for what was *sent* to it."""
    once = {each.packet_id for each in sent if each.qos is QoS.AT_LEAST_ONCE}
    twice = {each.packet_id for each in sent if each.qos is QoS.EXACTLY_ONCE}
    packets = [packet for _, packet in given.packets]
    received = twice & _acked(packets, Pubrec)
    return [
        *(f"PUBACK {number}" for number in sorted(_ids(once - _acked(packets, Puback)))),
        *(f"PUBREC {number}" for number in sorted(_ids(twice - received))),
        *(f"PUBCOMP {number}" for number in sorted(_ids(received - _acked(packets, Pubcomp)))),
    ]


def _ids(numbers: set[int | None]) -> list[int]:
    return [number for number in numbers if number is not None]


def _acked(packets: Sequence[Packet], kind: type[Puback | Pubrec | Pubcomp]) -> set[int | None]:
    return {packet.packet_id for packet in packets if isinstance(packet, kind)}


def releases_again(attempts: Sequence[Attempt], window: float, ending: str = "") -> list[Line]:
    """Judge a device whose connection broke when it had sent PUBREL.

    It was watched for *window* seconds from its first connection; *ending* is how it ended by itself.
    """
    right = "sends PUBREL again, and the message no more"
    first = next((a for a in attempts if any(isinstance(packet, Pubrel) for _, packet in a.packets)), None)
    if first is None:
        return [missed("releases-again", right, "it publishes nothing with QoS 2")]
    released = next(packet.packet_id for _, packet in first.packets if isinstance(packet, Pubrel))
    told = next((p for p in first.published if p.qos is QoS.EXACTLY_ONCE and p.packet_id == released), None)
    later = attempts[list(attempts).index(first) + 1 :]
    resumed = next((a for a in later if a.connack is not None), None)
    if resumed is None:
        return [missed("releases-again", right, "it did not come again")]
    if resumed.connack is not None and not resumed.connack.session_present:
        return [skipped("releases-again", right, "it asks for no session")]
    packets = [packet for _, packet in resumed.packets]
    doubled = told is not None and any(
        isinstance(p, Publish) and p.packet_id == released and p.payload == told.payload for p in packets
    )
    again = any(isinstance(p, Pubrel) and p.packet_id == released for p in packets)
    until = attempts[0].at + window - TO_RESEND
    late = resumed.answered is None or resumed.answered >= until
    if late and resumed.ended is None and not (again or doubled or ending):
        return [missed("releases-again", right, "it was not served again for long enough; give a longer --window")]
    seen = "PUBLISH again" if doubled else "PUBREL again" if again else "neither again"
    why = "[MQTT-4.3.3-6]: a broker that has released the identifier delivers it twice" if doubled else "[MQTT-4.4.0-1]"
    slow = None if doubled else 0.0
    return [line_of("releases-again", right, good=again and not doubled, seen=seen, why=why, late=slow)]
