"""The verdict on a device that was told the broker's limits, and on what it does with what is under way."""

from __future__ import annotations

from typing import Any

import pytest

from broker.mqtt.codes import ProtocolVersion, QoS
from broker.mqtt.connect import Connect
from broker.mqtt.packets import Connack, Packet, Puback, Pubcomp, Publish, Pubrec, Pubrel
from broker.mqtt.properties import Properties
from device_sim.attack.verdict import Verdict
from device_sim.qualify import limit_judging
from device_sim.qualify.attempt import Attempt
from device_sim.qualify.judging import Line

PASS, WARN, FAIL, SKIP = Verdict.PASS, Verdict.WARN, Verdict.FAIL, Verdict.SKIP
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
        # Nothing is known of the next connection.
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


@pytest.mark.parametrize(
    ("later", "present", "expected"),
    [
        ([Pubrel(1)], True, PASS),
        ([message(1, qos=TWICE)], True, FAIL),
        ([], True, FAIL),
        ([], False, SKIP),
    ],
)
def test_what_was_released_is_released_again(later: list[Packet], present: bool, expected: Verdict) -> None:
    first = served((0.1, message(1, qos=TWICE)), (0.2, Pubrel(1)))
    again = served(*((0.1, each) for each in later), present=present)
    assert verdicts(limit_judging.releases_again([first, again])) == {"releases-again": expected}


def test_nothing_is_released_by_who_publishes_nothing_at_qos_2_or_stays_away() -> None:
    assert verdicts(limit_judging.releases_again([served()])) == {"releases-again": SKIP}
    first = served((0.1, message(1, qos=TWICE)), (0.2, Pubrel(1)))
    assert verdicts(limit_judging.releases_again([first])) == {"releases-again": SKIP}
