"""The verdict on a device that was told the broker's limits, and on what it does with what is under way."""

from __future__ import annotations

from typing import Any

import pytest

from broker.mqtt.codes import ProtocolVersion, QoS
from broker.mqtt.connect import Connect
from broker.mqtt.packets import Connack, Disconnect, Packet, Pingreq, Puback, Pubcomp, Publish, Pubrec, Pubrel
from broker.mqtt.properties import Properties
from device_sim.attack.verdict import Verdict
from device_sim.qualify import limit_judging
from device_sim.qualify.attempt import Attempt
from device_sim.qualify.judging import Line
from device_sim.qualify.starvation import Waited, on_this_machine

PASS, WARN, FAIL, SKIP, INVALID = Verdict.PASS, Verdict.WARN, Verdict.FAIL, Verdict.SKIP, Verdict.INVALID
STARVED = Waited(8.0, 20.0)
V5, V311 = ProtocolVersion.V5, ProtocolVersion.V311
ONCE, TWICE = QoS.AT_LEAST_ONCE, QoS.EXACTLY_ONCE


def served(*packets: tuple[float, Packet], version: ProtocolVersion = V5, keep_alive: int = 60, present: bool = True,
           sent: tuple[Packet, ...] = (), **told: int) -> Attempt:  # fmt: skip
    connect = Connect("d", keep_alive=keep_alive, protocol_version=version)
    connack = Connack(session_present=present, properties=Properties(**told))  # type: ignore[arg-type]
    return Attempt(0.0, tls=0.0, answered=0.0, packets=[(-0.1, connect), *packets], sent=[connack, *sent])


def message(
    number: int, payload: bytes = b"x", *, topic: str = "t", alias: int | None = None, qos: QoS = ONCE
) -> Publish:
    return Publish(topic, payload, qos, packet_id=number, properties=Properties(topic_alias=alias))


def verdicts(lines: list[Line]) -> dict[str, Verdict]:
    return {line.name: line.verdict for line in lines}


LIMITS: dict[str, Any] = {"receive_maximum": 2, "server_keep_alive": 2}
PINGS = tuple((float(at), Puback(1)) for at in range(1, 6))


@pytest.mark.parametrize(
    ("packets", "line", "expected"),
    [
        ([(0.1, message(1)), (0.1, message(2, b"y")), *PINGS], "receive-maximum", PASS),
        ([(0.1, message(1)), (0.1, message(2, b"y")), (0.1, message(3, b"z")), *PINGS], "receive-maximum", FAIL),
        ([(0.1, message(1)), *PINGS], "receive-maximum", SKIP),
        ([*PINGS], "server-keep-alive", PASS),
        ([(0.5, message(1))], "server-keep-alive", FAIL),
        ([(0.1, message(1)), (0.2, message(1, b"y")), *PINGS], "packet-identifiers", FAIL),
        ([(0.1, message(1)), (0.2, message(2, b"y")), *PINGS], "packet-identifiers", PASS),
        ([(0.1, message(1)), *PINGS], "packet-identifiers", SKIP),
        ([(0.1, message(1)), (0.2, message(1)), *PINGS], "sends-once", FAIL),
        ([(0.1, message(1)), *PINGS], "sends-once", PASS),
        ([*PINGS], "sends-once", SKIP),
    ],
)
def test_limits(packets: list[tuple[float, Packet]], line: str, expected: Verdict) -> None:
    found = verdicts(limit_judging.keeps_limits([served(*packets, **LIMITS)], 6.0, ended=False))
    assert found[line] is expected


def test_what_only_mqtt_5_can_say_is_skipped_for_an_older_device() -> None:
    older = served((0.1, message(1)), (0.2, message(1)), version=V311)
    found = verdicts(limit_judging.keeps_limits([older], 6.0, ended=False))
    assert found == {
        "receive-maximum": SKIP, "server-keep-alive": SKIP, "packet-identifiers": PASS, "sends-once": WARN,
    }  # fmt: skip
    assert verdicts(limit_judging.keeps_packets_small([older])) == {"maximum-packet-size": SKIP}
    assert verdicts(limit_judging.keeps_packets_small([])) == {"maximum-packet-size": SKIP}
    assert verdicts(limit_judging.keeps_limits([], 6.0, ended=False)) == {"receive-maximum": SKIP}


def test_a_keep_alive_that_was_short_already_is_not_judged() -> None:
    device = served((0.5, message(1)), keep_alive=1, **LIMITS)
    assert verdicts(limit_judging.keeps_limits([device], 6.0, ended=False))["server-keep-alive"] is SKIP


def test_a_connection_that_was_short_says_nothing_of_a_keep_alive() -> None:
    device = served((0.5, message(1)), **LIMITS)
    device.ended = 0.8
    assert verdicts(limit_judging.keeps_limits([device], 6.0, ended=False))["server-keep-alive"] is SKIP


@pytest.mark.parametrize(("payload", "expected"), [(b"x" * 8, PASS), (b"x" * 80, FAIL)])
def test_packets_are_small_enough(payload: bytes, expected: Verdict) -> None:
    found = limit_judging.keeps_packets_small([served((0.1, message(1, payload)), maximum_packet_size=40)])
    assert verdicts(found) == {"maximum-packet-size": expected}


@pytest.mark.parametrize(
    ("attempts", "expected"),
    [
        ([served((0.1, message(1, alias=1)), (0.2, message(2, topic="", alias=1)), topic_alias_maximum=2),
          served((0.3, message(1)))], PASS),
        # Nothing is known of the next connection, or of what would be published on it.
        ([served((0.1, message(1, alias=1)), topic_alias_maximum=2), served()], SKIP),
        ([served((0.1, message(1, alias=1)), (0.2, message(2, topic="", alias=1)), topic_alias_maximum=2)], SKIP),
        ([served((0.1, message(1, alias=3)), topic_alias_maximum=2)], FAIL),
        ([served((0.1, message(1, alias=1)))], FAIL),
        ([served((0.1, message(1, alias=1)), topic_alias_maximum=2),
          served((0.1, message(2, topic="", alias=1)), topic_alias_maximum=2)], FAIL),
        ([served((0.1, message(1)), topic_alias_maximum=2)], SKIP),
    ],
)  # fmt: skip
def test_aliases_are_of_one_connection(attempts: list[Attempt], expected: Verdict) -> None:
    assert verdicts(limit_judging.keeps_aliases(attempts)) == {"topic-aliases": expected}


COMMANDS: tuple[Packet, ...] = (message(101), message(102, qos=TWICE))


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([Puback(101), Pubrec(102), Pubcomp(102)], PASS),
        ([Puback(101), Puback(102)], FAIL),
        ([Puback(101), Pubrec(102)], FAIL),
        ([Pubrec(102), Pubcomp(102)], FAIL),
    ],
)
def test_commands_are_acknowledged(answers: list[Packet], expected: Verdict) -> None:
    device = served(*((0.1, each) for each in answers), sent=COMMANDS)
    assert verdicts(limit_judging.takes_commands([device])) == {"takes-commands": PASS, "acknowledges": expected}


def test_a_device_that_leaves_at_a_command_or_takes_none() -> None:
    device = served(sent=(Publish("t", b""),))
    device.ended = 1.0
    assert verdicts(limit_judging.takes_commands([device])) == {"takes-commands": FAIL, "acknowledges": SKIP}
    assert verdicts(limit_judging.takes_commands([served()])) == {"acknowledges": SKIP}


def test_who_answers_a_command_with_what_is_no_mqtt_is_told_that() -> None:
    """The stand ends the connection then, and not the device."""
    device = served(sent=(Publish("t", b""),))
    device.ended, device.noise = 1.0, "PINGRESP, which only a broker sends"
    line = limit_judging.takes_commands([device], leaves=True)[0]
    assert (line.verdict, line.why) == (FAIL, device.noise)


@pytest.mark.parametrize(
    ("said", "leaves", "expected"),
    [(True, True, SKIP), (True, False, FAIL), (False, True, FAIL), (True, None, SKIP), (False, None, FAIL)],
)
def test_who_leaves_a_broker_that_sends_it_nothing_too_has_not_left_because_of_a_command(
    said: bool, leaves: bool | None, expected: Verdict
) -> None:
    device = served(*([(0.9, Disconnect())] if said else []), sent=(Publish("t", b""),))
    device.ended = 1.0
    line = limit_judging.takes_commands([device], leaves=leaves)[0]
    assert (line.name, line.verdict) == ("takes-commands", expected)
    assert line.why.endswith("--only good,commands") is (said and leaves is None)


@pytest.mark.parametrize(
    ("later", "present", "expected"),
    [
        ([Pubrel(1)], True, PASS),
        ([message(1, qos=TWICE)], True, FAIL),
        ([], True, FAIL),
        ([], False, SKIP),
        ([Pubrel(2)], True, FAIL),  # Another one's.
        ([Pubrel(1), message(1, qos=TWICE)], True, FAIL),
        ([Pubrel(1), message(2, qos=TWICE)], True, PASS),  # A new message, which says the same.
        ([Pubrel(1), message(1, b"new", qos=TWICE)], True, PASS),
    ],
)
def test_what_was_released_is_released_again(later: list[Packet], present: bool, expected: Verdict) -> None:
    first = served((0.1, message(1, qos=TWICE)), (0.2, Pubrel(1)))
    again = served(*((0.1, each) for each in later), present=present)
    assert verdicts(limit_judging.releases_again([first, again], 20.0)) == {"releases-again": expected}


@pytest.mark.parametrize(
    ("answered", "ended", "ending", "expected"),
    [
        (16.0, None, "", FAIL),
        (17.5, None, "", SKIP),  # It came again, too late to do it.
        (17.5, 18.0, "", FAIL),  # It left without.
        (17.5, None, "it ended with status 1", FAIL),
    ],
)
def test_who_comes_again_at_the_end_had_no_time_to_release(
    answered: float, ended: float | None, ending: str, expected: Verdict
) -> None:
    first = served((0.1, message(1, qos=TWICE)), (0.2, Pubrel(1)))
    again = served()
    again.at = again.answered = answered
    again.ended = ended
    assert verdicts(limit_judging.releases_again([first, again], 20.0, ending)) == {"releases-again": expected}
    again.packets.append((answered + 0.1, Pubrel(1)))
    assert verdicts(limit_judging.releases_again([first, again], 20.0, ending)) == {"releases-again": PASS}


def test_nothing_is_released_by_who_publishes_nothing_at_qos_2_or_stays_away() -> None:
    assert verdicts(limit_judging.releases_again([served()], 20.0)) == {"releases-again": SKIP}
    first = served((0.1, message(1, qos=TWICE)), (0.2, Pubrel(1)))
    assert verdicts(limit_judging.releases_again([first], 20.0)) == {"releases-again": SKIP}


def test_each_connection_is_held_to_the_limits() -> None:
    """On the first it has two messages under way, on the second three."""
    two = ((0.1, message(1)), (0.1, message(2, b"y")))
    kept, broken = served(*two, *PINGS, **LIMITS), served(*two, (0.1, message(3, b"z")), *PINGS, **LIMITS)
    for attempts in ([kept, broken], [broken, kept]):
        found = verdicts(limit_judging.keeps_limits(attempts, 6.0, ended=False))
        assert (found["receive-maximum"], found["packet-identifiers"]) == (FAIL, PASS)
    one = served((0.1, message(1)), *PINGS, **LIMITS)
    assert verdicts(limit_judging.keeps_limits([kept, one], 6.0, ended=False))["packet-identifiers"] is PASS
    unserved = Attempt(0.0, tls=0.1)
    assert verdicts(limit_judging.keeps_limits([unserved, kept], 6.0, ended=False))["receive-maximum"] is PASS


@pytest.mark.parametrize(
    ("said", "ends", "ended", "expected"),
    [
        (3.5, 5.0, False, PASS),  # One and a half of its two seconds, and what a packet may be late.
        (3.9, 5.0, False, FAIL),
        (0.5, None, False, FAIL),  # It was watched for six seconds.
        (0.5, None, True, PASS),  # It has ended, nobody knows when.
    ],
)
def test_a_device_may_be_silent_for_one_and_a_half_of_its_keep_alive(
    said: float, ends: float | None, ended: bool, expected: Verdict
) -> None:
    device = served((said, message(1)), **LIMITS)
    device.ended = ends
    found = limit_judging.keeps_limits([device], 6.0, ended=ended)
    assert verdicts(found)["server-keep-alive"] is expected


def test_who_takes_long_to_be_served_is_watched_no_longer() -> None:
    """The window begins with its first connection: two seconds for its handshake, and it pings until the end."""
    pings: list[tuple[float, Packet]] = [(float(at), Pingreq()) for at in range(2, 7, 2)]
    device = served(*pings, **LIMITS)
    device.at = -2.0
    assert verdicts(limit_judging.keeps_limits([device], 8.0, ended=False))["server-keep-alive"] is PASS
    tried = Attempt(-9.0, offered=0x0304, ended=-8.0)
    assert verdicts(limit_judging.keeps_limits([tried, device], 15.0, ended=False))["server-keep-alive"] is PASS
    assert verdicts(limit_judging.keeps_limits([tried, device], 20.0, ended=False))["server-keep-alive"] is FAIL


def test_a_keep_alive_as_short_as_the_broker_s_is_its_own() -> None:
    device = served((0.5, message(1)), keep_alive=2, **LIMITS)
    assert verdicts(limit_judging.keeps_limits([device], 6.0, ended=False))["server-keep-alive"] is SKIP
    device = served((0.5, message(1)), keep_alive=0, **LIMITS)
    assert verdicts(limit_judging.keeps_limits([device], 6.0, ended=False))["server-keep-alive"] is FAIL


def test_the_largest_packet_counts() -> None:
    sizes = [(0.1, message(1, b"x")), (0.2, message(2, b"x" * 80)), (0.3, message(3, b"x"))]
    assert verdicts(limit_judging.keeps_packets_small([served(*sizes, maximum_packet_size=40)])) == {
        "maximum-packet-size": FAIL
    }
    quiet = served(maximum_packet_size=40)
    assert verdicts(limit_judging.keeps_packets_small([quiet, served(*sizes)])) == {"maximum-packet-size": FAIL}


def test_aliases_of_a_device_that_need_not_use_any() -> None:
    assert limit_judging.keeps_aliases([served((0.1, message(1)))], essential=False) == []
    used = served((0.1, message(1, alias=1)), topic_alias_maximum=2)
    assert verdicts(limit_judging.keeps_aliases([used], essential=False)) == {"topic-aliases": PASS}


@pytest.mark.parametrize(
    ("command", "answers", "expected"),
    [
        (message(101), [], FAIL),
        (message(101), [Puback(101)], PASS),
        (message(102, qos=TWICE), [], FAIL),
        (message(102, qos=TWICE), [Pubrec(102), Pubcomp(102)], PASS),
    ],
)
def test_commands_of_one_qos_are_acknowledged_too(command: Packet, answers: list[Packet], expected: Verdict) -> None:
    device = served(*((0.1, each) for each in answers), sent=(command,))
    assert verdicts(limit_judging.takes_commands([device]))["acknowledges"] is expected


TWO = ((0.1, message(1)), (0.1, message(2, b"y")))
RELEASED = served((0.1, message(1, qos=TWICE)), (0.2, Pubrel(1)))


@pytest.mark.parametrize(
    ("lines", "name"),
    [
        (limit_judging.keeps_limits([served(*TWO, *PINGS, **LIMITS)], 6.0, ended=False), "receive-maximum"),
        (limit_judging.keeps_limits([served((0.1, message(1)), **LIMITS)], 6.0, ended=False), "server-keep-alive"),
        (limit_judging.keeps_limits([served(*TWO, *PINGS, **LIMITS)], 6.0, ended=False), "sends-once"),
        (limit_judging.keeps_packets_small([served(maximum_packet_size=40)]), "maximum-packet-size"),
        (limit_judging.takes_commands([served(sent=COMMANDS)]), "takes-commands"),
        (limit_judging.takes_commands([served(sent=COMMANDS)]), "acknowledges"),
        (limit_judging.releases_again([RELEASED, served()], 20.0), "releases-again"),
    ],
)
def test_what_a_slow_device_had_no_time_for_is_no_verdict_on_a_starved_machine(lines: list[Line], name: str) -> None:
    line = next(each for each in lines if each.name == name)
    assert on_this_machine(line, STARVED).verdict is INVALID
    assert on_this_machine(line, Waited(0.5, 20.0)).verdict is line.verdict


def test_a_message_sent_after_its_release_was_sent_on_any_machine() -> None:
    (line,) = limit_judging.releases_again([RELEASED, served((0.1, message(1, qos=TWICE)))], 20.0)
    assert on_this_machine(line, STARVED).verdict is FAIL


def test_of_several_messages_the_one_that_was_released_counts() -> None:
    """The second one was: the first, of which nothing is known, is sent again as it should."""
    first = served((0.1, message(1, b"a", qos=TWICE)), (0.1, message(2, b"b")), (0.1, message(3, b"c", qos=TWICE)),
                   (0.2, Pubrel(3)))  # fmt: skip
    again = served((0.1, message(1, b"a", qos=TWICE)), (0.1, message(2, b"b")), (0.2, Pubrel(3)))
    assert verdicts(limit_judging.releases_again([first, again], 20.0)) == {"releases-again": PASS}
    doubled = served((0.1, message(3, b"c", qos=TWICE)), (0.2, Pubrel(3)))
    (line,) = limit_judging.releases_again([first, doubled], 20.0)
    assert (line.verdict, line.seen) == (FAIL, "PUBLISH again")


def test_what_is_exactly_as_large_as_allowed_is_allowed() -> None:
    size = len(message(1, b"").encode(V5))
    exact = served((0.1, message(1, b"x" * (40 - size))), maximum_packet_size=40)
    assert verdicts(limit_judging.keeps_packets_small([exact])) == {"maximum-packet-size": PASS}
    larger = served((0.1, message(1, b"x" * (41 - size))), maximum_packet_size=40)
    assert verdicts(limit_judging.keeps_packets_small([larger])) == {"maximum-packet-size": FAIL}
    both = served((0.1, message(1, alias=2)), topic_alias_maximum=2)
    assert verdicts(limit_judging.keeps_aliases([both], essential=False)) == {"topic-aliases": PASS}


def test_what_was_sent_before_connack_had_no_limit() -> None:
    device = served((-0.05, message(1, b"x" * 80)), (0.1, message(2)), maximum_packet_size=40)
    (line,) = limit_judging.keeps_packets_small([device])
    assert (line.verdict, line.seen) == (PASS, f"{len(message(2).encode(V5))} bytes at most, 40 allowed")


def test_a_keep_alive_is_judged_by_when_it_was_set() -> None:
    """Whatever the clock says: CONNACK came at 1000, and the connection ended three seconds later."""
    device = served((1000.5, message(1)), **LIMITS)
    device.at, device.answered, device.ended = 999.5, 1000.0, 1003.0
    assert verdicts(limit_judging.keeps_limits([device], 6.0, ended=False))["server-keep-alive"] is SKIP
    device.ended = 1004.5
    assert verdicts(limit_judging.keeps_limits([device], 6.0, ended=False))["server-keep-alive"] is FAIL


def test_how_often_a_message_was_sent_is_told() -> None:
    said = {
        "once": [message(1)],
        "3 times on one connection": [message(1), message(2, b"y"), message(1), message(1)],
    }
    for seen, packets in said.items():
        device = served(*((0.1, each) for each in packets), *PINGS, **LIMITS)
        line = next(
            each for each in limit_judging.keeps_limits([device], 6.0, ended=False) if each.name == "sends-once"
        )
        assert line.seen == seen


def test_a_connection_that_the_stand_has_ended_was_not_left_for_a_command() -> None:
    device = served(sent=COMMANDS)
    device.ended, device.by_device = 1.0, False
    assert verdicts(limit_judging.takes_commands([device]))["takes-commands"] is PASS
    assert verdicts(limit_judging.takes_commands([device], leaves=True))["takes-commands"] is PASS
