"""How a device's attempts are judged: lines of a verdict, each about one thing.

Theory
------
*fail* is what harms the device or its fleet: data for a server that it cannot verify, a tight loop, a lost message.
*warn* is what will cause trouble one day: waits that are always the same, no hint of the cause, giving up. What a
device never had to do is *skip*, with the reason.

Rules
-----
1. No I/O and no clock.
2. How waits grow and scatter is judged over all stages together: one stage has too few of them.
"""

from __future__ import annotations

import math
import signal
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from broker.mqtt.codes import ProtocolVersion
from broker.mqtt.packets import Disconnect
from device_sim.attack.verdict import Verdict
from device_sim.qualify.attempt import Attempt, pauses
from device_sim.qualify.client_hello import name_of
from device_sim.qualify.enrolment_stand import Arrival
from device_sim.qualify.kept_session import lasts
from provisioning.program.counted import counted

SENDS_NOTHING = "sends-nothing"
LEAVES = "it leaves a broker that serves it well, too"
MAY_LEAVE = "it may leave a broker that serves it well, too, as only the stage good tells: --only good,"
"""Followed by the name of the stage."""
NEVER_ASKS = "it asks for no staple: only a CRL, or asking by itself, tells it that the server is revoked"
_UNDECIDED = "no handshake came to its end; give a longer --window"
_SILENT = frozenset({"closed", "reset", "timeout", "server_certificate"})
_TIGHT = 0.1
_SAME = 0.08
_GROWTH = 1.3
_ENOUGH = 4
_TWO = 2
TO_RESEND = 3.0
"""Seconds in which a device that is served again sends what is under way."""
_LONG_KEEP_ALIVE = 1200
_FACTOR = 2.0
_SLACK = 2.0


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the verdict. *name* is its subject, *right* what is expected, *seen* what happened."""

    name: str
    right: str
    verdict: Verdict
    seen: str = ""
    why: str = ""
    by_time: float | None = None
    """Seconds of waiting for a core that would explain this verdict, a pass too; None: slowness cannot explain it.

    0: slowness alone can, but there is no telling how much.
    """


def line_of(
    name: str, right: str, *, good: bool, seen: str, why: str, otherwise: Verdict = Verdict.FAIL,
    lucky: float | None = None, late: float | None = None,
) -> Line:  # fmt: skip
    """Return a line that passes if *good*, and else has the verdict *otherwise*, with the reason *why*.

    *lucky* is `Line.by_time` if it passes, *late* otherwise.
    """
    if good:
        return Line(name, right, Verdict.PASS, seen, by_time=lucky)
    return Line(name, right, otherwise, seen, why, late)


def _connections(attempts: Sequence[Attempt]) -> str:
    return counted(len(attempts), "connection")


def skipped(name: str, right: str, why: str, *, by_time: float | None = None) -> Line:
    """Return a line about what could not be judged."""
    return Line(name, right, Verdict.SKIP, "", why, by_time)


def missed(name: str, right: str, why: str) -> Line:
    """Return a line about what the device has not done, and might have with more time."""
    return skipped(name, right, why, by_time=0.0)


def ending(status: int | None, said: str) -> str:
    """Return how a device ended by itself, by its exit *status*, with what it *said* last; empty: it has not."""
    if status is None:
        return ""
    return f"it ended {_how(status)}" + (f"; it said: {said}" if said else ", and said nothing")


def habits(attempts: Sequence[Attempt], ending: str = "") -> list[Line]:
    """Judge a well-served device; *ending* is how it ended by itself."""
    served = [attempt for attempt in attempts if attempt.answered is not None]
    if not served:
        seen = f"{_connections(attempts)}, none with a CONNECT" if attempts else "it did not come"
        why = ending or "nothing can be judged without"
        # A program that ends before it connects has its reasons.
        slow = 0.0 if attempts or not ending else None
        return [Line("connects", "connects and is served", Verdict.FAIL, seen, why, slow)]
    first = served[0]
    connect = first.connect
    if connect is None:
        raise ValueError("an attempt that was answered without a CONNECT")
    alive = connect.keep_alive
    early = [packet for at, packet in first.packets if first.answered is not None and at < first.answered]
    return [
        Line("connects", "connects and is served", Verdict.PASS, f"MQTT {_version(connect.protocol_version)}"),
        line_of(
            "tls", "TLS 1.3", good=first.tls_version == "TLSv1.3", seen=first.tls_version,
            why="1.2 is old: offer 1.3", otherwise=Verdict.WARN,
        ),
        line_of(
            "certificate", "shows its certificate", good=first.certificate,
            seen="a certificate" if first.certificate else "none", why="a broker that asks for one refuses it",
        ),
        line_of(
            "keep-alive", f"a keep alive of 1 to {_LONG_KEEP_ALIVE} s", good=0 < alive <= _LONG_KEEP_ALIVE,
            seen=f"{alive} s", why="a dead connection goes unnoticed for long", otherwise=Verdict.WARN,
        ),
        line_of(
            "stays", "stays connected", good=len(attempts) == 1, seen=_connections(attempts),
            why="it left a broker that serves it well", otherwise=Verdict.WARN, late=0.0,
        ),
        line_of(
            "waits-for-connack", "sends nothing between CONNECT and CONNACK", good=len(early) <= 1,
            seen=f"{max(0, len(early) - 1)} packets", why="allowed, and lost if it is refused", otherwise=Verdict.WARN,
            lucky=first.answered - first.packets[0][0] if first.answered is not None else None,
        ),
        speaks_mqtt(attempts),
    ]  # fmt: skip


def leaves(attempts: Sequence[Attempt]) -> bool:
    """Whether a well-served device has said goodbye by itself: it sleeps between two connections, or is done."""
    return any(each.answered is not None and said_goodbye(each) for each in attempts)


def said_goodbye(attempt: Attempt) -> bool:
    """Whether the device has ended it with DISCONNECT."""
    return bool(attempt.packets) and isinstance(attempt.packets[-1][1], Disconnect)


def speaks_mqtt(attempts: Sequence[Attempt]) -> Line:
    """Judge whether all that a device sent to a broker that it trusts is MQTT."""
    noise = next((attempt.noise for attempt in attempts if attempt.noise), "")
    right = "sends only what the standard allows"
    return line_of(
        "speaks-mqtt", right, good=not noise, seen=noise or "MQTT", why="a broker ends the connection at once"
    )


def verifies(attempts: Sequence[Attempt]) -> list[Line]:
    """Judge a device faced with the wrong server."""
    right = "refuses the server and sends it nothing"
    if not attempts:
        return [missed(SENDS_NOTHING, right, "it did not come")]
    leaked = [attempt for attempt in attempts if attempt.sent_data]
    believed = [attempt for attempt in attempts if attempt.tls is not None and not attempt.sent_data]
    if leaked:
        what = "CONNECT" if leaked[0].connect is not None else "data"
        without = ", without TLS" if any(attempt.in_clear for attempt in leaked) else ""
        why = f"it sent {what} in {len(leaked)} of {len(attempts)} connections{without}"
        return [Line(SENDS_NOTHING, right, Verdict.FAIL, f"sent {what}", why)]
    if not any(map(_decided, attempts)):
        return [missed(SENDS_NOTHING, right, _UNDECIDED)]
    # What it sends to a server that it has just accepted may be under way.
    lucky = 0.0 if any(attempt.ended is None for attempt in believed) else None
    lines = [Line(SENDS_NOTHING, right, Verdict.PASS, "nothing sent", by_time=lucky)]
    told = "says why, with a TLS alert"
    if believed:
        why = "it finished the handshake, and then left without a word"
        return [*lines, Line("says-why", told, Verdict.WARN, "no alert", why)]
    alerts = sorted({attempt.refusal for attempt in attempts if attempt.alert})
    if not alerts and {attempt.refusal for attempt in attempts} - _SILENT - {""}:
        return [
            *lines,
            skipped("says-why", told, "it offers nothing that this server speaks, and so need refuse nothing"),
        ]
    lines.append(
        line_of(
            "says-why", told, good=bool(alerts), seen=", ".join(alerts) or "no alert",
            why="whoever looks for the cause finds a broken connection only", otherwise=Verdict.WARN,
        )
    )  # fmt: skip
    return lines


def checks_staple(attempts: Sequence[Attempt]) -> list[Line]:
    """Judge a device whose server has the wrong staple, or none where one is due.

    Whoever asks for a staple must check it (RFC 6066 §8), and refuse a server without one if its certificate says that
    one is due (RFC 7633). Nobody need ask.
    """
    if attempts and not any(attempt.asks_for_staple or attempt.in_clear for attempt in attempts):
        right = "refuses the server and sends it nothing"
        if all(attempt.asks_for_staple is None for attempt in attempts):
            return [missed(SENDS_NOTHING, right, "no ClientHello came whole; give a longer --window")]
        return [skipped(SENDS_NOTHING, right, NEVER_ASKS)]
    return verifies(attempts)


def refuses_old_tls(attempts: Sequence[Attempt]) -> list[Line]:
    """Judge a device that is offered only TLS 1.1."""
    right = "refuses TLS 1.1"
    if not attempts:
        return [missed(SENDS_NOTHING, right, "it did not come")]
    if any(attempt.in_clear for attempt in attempts):
        return [sends_nothing_in_clear(attempts)]
    if not any(map(_decided, attempts)):
        return [missed(SENDS_NOTHING, right, _UNDECIDED)]
    taken = [attempt for attempt in attempts if attempt.tls is not None]
    why = f"TLS 1.1 was spoken in {len(taken)} of {len(attempts)} connections"
    return [line_of(SENDS_NOTHING, right, good=not taken, seen="TLS 1.1" if taken else "refused", why=why)]


def _decided(attempt: Attempt) -> bool:
    """Whether it could judge the server, and has: accepted it, refused it, or left."""
    over = bool(attempt.refusal) or attempt.tls is not None or attempt.ended is not None
    return over and attempt.met_the_server


def sends_nothing_in_clear(connections: Sequence[Attempt | Arrival]) -> Line:
    """Judge whether a device has done without TLS, at the broker or at the enrolment service."""
    clear = sum(each.in_clear for each in connections)
    why = f"without TLS, in {clear} of {len(connections)} connections: everybody on the way has read it"
    right = "sends nothing without TLS"
    return line_of(SENDS_NOTHING, right, good=not clear, seen="sent data" if clear else "nothing sent", why=why)


def keeps_version(attempts: Sequence[Attempt]) -> list[Line]:
    """Judge whether a device whose connections break at its ClientHello offers less the next time."""
    right = "offers no older TLS after a broken connection"
    versions = [attempt.offered for attempt in attempts if attempt.offered is not None]
    if len(versions) < _TWO:
        return [missed("keeps-version", right, "too few attempts to tell; give a longer --window")]
    lowest = min(versions[1:])
    seen = f"{name_of(versions[0])} at first, {name_of(lowest)} later"
    why = "whoever breaks its connections makes it speak what can be attacked (RFC 7507)"
    return [line_of("keeps-version", right, good=lowest >= versions[0], seen=seen, why=why)]


def comes_back(attempts: Sequence[Attempt], status: int | None, window: float) -> list[Line]:
    """Judge how a device retries when every attempt fails; *status* is its exit status, if it has ended."""
    right = "tries again, and not in a tight loop"
    if not attempts:
        return [missed("comes-back", right, "it did not come")]
    waits = pauses(attempts)
    # Full jitter makes half of five waits short now and then, but not all but one; a tight loop on a starved machine
    # has one long wait, or several longer ones among many.
    but = max(1, len(waits) // 5)
    longest_but = [0.0, 0.0, *sorted(waits)][-1 - but]
    seen = f"{len(attempts)} attempts, waits of {_seconds(waits)}" if waits else "1 attempt"
    tight = len(waits) >= _ENOUGH and longest_but < _TIGHT
    at_most = f"{max(1, round(longest_but * 1000))} ms"
    if status is not None and not tight:
        return [Line("comes-back", right, Verdict.WARN, seen, f"it ended {_how(status)}: it gave up")]
    tried = [attempt for attempt in attempts if not attempt.only_tried_the_port]
    if len(tried) < _TWO and not tight:
        if not tried:
            return [missed("comes-back", right, "it only tried whether the port is open; give a longer --window")]
        if tried[0].ended is None:
            why = f"still in its first connection after {window:g} s: does it ever give up?"
            return [Line("comes-back", right, Verdict.WARN, seen, why, by_time=0.0)]
        return [missed("comes-back", right, f"one attempt in {window:g} s; give a longer --window")]
    judged = sorted(waits)[: len(waits) - but]
    # The stand sees late when the device leaves, and that it comes: each of its pauses may have been longer. What a
    # device waits for a core is a pause, seen from here.
    shorter = sum(max(0.0, _TIGHT - wait) for wait in judged)
    longer = sum(max(0.0, wait - _TIGHT) for wait in judged)
    return [
        line_of(
            "comes-back", right, good=not tight, seen=seen, lucky=longer, late=shorter,
            why=f"all waits but {'one' if but == 1 else but} are {at_most} at most: it hammers a server in trouble",
        )
    ]  # fmt: skip


def waits(sequences: Sequence[Sequence[float]]) -> list[Line]:
    """Judge the waits of all stages together: whether they grow, and whether they scatter."""
    grows, scatters = "waits longer after each failure", "waits are not always the same (jitter)"
    firsts = [waits[0] for waits in sequences if waits]
    later = [wait for waits in sequences for wait in waits[2:]]
    lines = []
    if len(later) < _ENOUGH or len(firsts) < _ENOUGH:
        lines.append(missed("waits-grow", grows, "too few waits to tell; give a longer --window"))
    else:
        early, late = statistics.mean(firsts), statistics.mean(later)
        lines.append(
            line_of(
                "waits-grow", grows, good=late > _GROWTH * early, seen=f"{early:.2f} s at first, {late:.2f} s later",
                why="a long outage costs as much as a short one, for the whole fleet at once", otherwise=Verdict.WARN,
                lucky=0.0, late=0.0,
            )
        )  # fmt: skip
    if len(firsts) < _ENOUGH:
        lines.append(missed("waits-scatter", scatters, "too few waits to tell; give a longer --window"))
    else:
        mean = statistics.mean(firsts)
        scatter = statistics.pstdev(firsts) / mean if mean else 0.0
        lines.append(
            line_of(
                "waits-scatter", scatters, good=scatter > _SAME, seen=f"first wait {mean:.2f} s ± {scatter:.0%}",
                why="a fleet that lost its broker comes back at the same moment", otherwise=Verdict.WARN,
                lucky=0.0, late=0.0,
            )
        )  # fmt: skip
    return lines


def gives_up(attempts: Sequence[Attempt], window: float) -> list[Line]:
    """Judge a device that gets no answer."""
    right = "gives up a server that does not answer"
    if not attempts:
        return [missed("gives-up", right, "it did not come")]
    waited = [attempt for attempt in attempts if not attempt.only_tried_the_port]
    if not waited:
        return [missed("gives-up", right, "it only tried whether the port is open; give a longer --window")]
    given = [attempt for attempt in waited if attempt.ended is not None]
    seen = f"after {min(a.ended - a.at for a in given if a.ended is not None):.1f} s" if given else "it waits"
    why = f"it still waited after {window:g} s; with a longer --window it may yet"
    return [line_of("gives-up", right, good=bool(given), seen=seen, why=why, otherwise=Verdict.WARN, late=0.0)]


def notices_silence(attempts: Sequence[Attempt], window: float) -> list[Line]:
    """Judge a device whose broker has vanished without notice (half-open)."""
    right = "leaves within twice its keep alive, and comes again"
    served = next((attempt for attempt in attempts if attempt.answered is not None), None)
    if served is None or served.connect is None or served.answered is None:
        return [missed("notices", right, "it was never served")]
    alive = served.connect.keep_alive
    allowed = _FACTOR * alive + _SLACK
    if served.ended is not None:
        took = served.ended - served.answered
        return [
            line_of(
                "notices", right, good=took <= allowed or alive == 0, seen=f"after {took:.1f} s", why="too late",
                lucky=0.0, late=took - allowed,
            ),
            line_of(
                "comes-again", "connects again", good=attempts[-1] is not served, seen=_connections(attempts),
                why="it left, and stayed away", otherwise=Verdict.WARN, late=0.0,
            ),
        ]  # fmt: skip
    if alive == 0:
        return [Line("notices", right, Verdict.FAIL, "it stays", "its keep alive is off: it will never notice")]
    # It was watched from when it came first, not from CONNACK on.
    watched = attempts[0].at + window - served.answered
    if allowed > watched:
        why = f"its keep alive of {alive} s takes a --window of {math.ceil(window - watched + allowed)} s"
        return [skipped("notices", right, why)]
    why = f"keep alive {alive} s, and still there"
    return [Line("notices", right, Verdict.FAIL, "it stays", why, watched - allowed)]


def redelivers(attempts: Sequence[Attempt], window: float, ending: str = "") -> list[Line]:
    """Judge a device whose first message was not acknowledged before the connection broke.

    It was watched for *window* seconds from its first connection; *ending* is how it ended by itself.
    """
    right, marked = "sends the message again", "marks it as sent before (DUP), with its packet identifier"
    senders = [attempt for attempt in attempts if attempt.published]
    if not senders:
        return [missed("resends", right, "it publishes nothing with QoS 1 or 2")]
    lost = senders[0].published[0]
    later = attempts[list(attempts).index(senders[0]) + 1 :]
    until = attempts[0].at + window - TO_RESEND
    if not ending and not any(a.answered is not None and (a.published or a.ended or a.answered < until) for a in later):
        return [missed("resends", right, "it was not served again for long enough; give a longer --window")]
    again = [
        (attempt, packet)
        for attempt in senders[1:]
        for packet in attempt.published
        if (packet.topic, packet.payload) == (lost.topic, lost.payload)
    ]
    changed = _other_name(senders)
    if changed:
        why = "its session, with the message, is under the identifier that it was assigned [MQTT-3.1.3-7]"
        return [Line("resends", right, Verdict.FAIL, changed, why)]
    if not again:
        why = "the broker never acknowledged it: it is lost"
        slow = None if any(attempt.published for attempt in later) else 0.0
        return [Line("resends", right, Verdict.FAIL, f"{len(senders)} connections with messages", why, slow)]
    lines = [Line("resends", right, Verdict.PASS, "sent again")]
    resumed, packet = again[0]
    if resumed.connack is None or not resumed.connack.session_present:
        return [*lines, skipped("marks-duplicate", marked, "it has kept no session, so that it is a new message")]
    good = packet.dup and packet.packet_id == lost.packet_id
    seen = f"DUP {int(packet.dup)}, packet identifier {packet.packet_id} after {lost.packet_id}"
    return [*lines, line_of("marks-duplicate", marked, good=good, seen=seen, why="[MQTT-3.3.1-1], [MQTT-4.4.0-1]")]


def _other_name(senders: Sequence[Attempt]) -> str:
    """Return what is wrong if a device that was assigned a client identifier, and keeps a session, forgets it."""
    first = senders[0]
    assigned = first.connack.properties.assigned_client_identifier if first.connack is not None and first.v5 else None
    if not assigned:
        return ""
    later = next((each.connect for each in senders[1:] if each.connect is not None), None)
    if later is None or later.clean_start or later.client_id == assigned or lasts(first) == 0.0:
        return ""
    return f"it was called {assigned}, and came as {later.client_id!r}"


def serves_slowly(attempts: Sequence[Attempt]) -> list[Line]:
    """Judge a device behind a slow network."""
    if not attempts:
        return [missed("is-served", "works over a slow network", "it did not come")]
    served = [attempt for attempt in attempts if attempt.answered is not None]
    return [
        line_of(
            "is-served", "works over a slow network", good=bool(served), seen=_connections(attempts),
            why="it does not get through: its timeouts are too short", late=0.0,
        )
    ]  # fmt: skip


def _version(version: ProtocolVersion) -> str:
    return {ProtocolVersion.V31: "3.1", ProtocolVersion.V311: "3.1.1", ProtocolVersion.V5: "5"}[version]


def _seconds(waits: Sequence[float]) -> str:
    shown = ", ".join(f"{wait:.2f}" for wait in waits[:5])
    return f"{shown}{', …' if waits[5:] else ''} s"


def _how(status: int) -> str:
    if status >= 0:
        return f"with status {status}"
    try:
        return f"by {signal.Signals(-status).name}"
    except ValueError:  # One of the real-time signals has no name.
        return f"by signal {-status}"
