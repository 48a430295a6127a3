"""``$SYS`` of a running broker and of a running mosquitto after the same traffic: the same names, and the same values.

Both are held against what the clients have counted. Neither says when it has looked, so a reader comes again and again,
which is traffic, too: the figures have to be those of the moment before one of its visits.
"""

from __future__ import annotations

import math
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from broker.engine.sys_topics import FIGURES, INTERVAL, NOT_OFFERED
from broker.mqtt.acks import Puback, Pubcomp, Pubrec, Pubrel
from broker.mqtt.codes import QoS, ReasonCode
from broker.mqtt.connect import Connack
from broker.mqtt.disconnect import Disconnect
from broker.mqtt.ping import Pingreq, Pingresp
from broker.mqtt.publication import Publish
from broker.mqtt.subscribe import Suback, Subscribe, SubscriptionRequest
from device_sim.stage.foreign_process import free_port
from tests.support.broker_process import BrokerProcess, wait_until
from tests.support.counting_client import CountingClient, Counts
from tests.support.pki import Pki
from tests.support.wire import V5, V31, V311, connect_packet, publication

KEPT = 5
"""Sessions whose clients are gone: more than there are connections at a time."""
RETAINED = 2
SUBSCRIPTIONS = 2 + KEPT
READING = f"{FIGURES}#"
SOCKETS = "connections/socket/count"
"""From mosquitto 2.1 on."""
SAMPLED = 2.5 * INTERVAL
"""Seconds: by how much more than mosquitto a broker's averages may have faded, which it does not say."""


def talk(port: int, counts: Counts, during: Callable[[], None]) -> None:
    """The traffic; *during* it, two clients are connected."""
    listening = CountingClient(port, counts, V5)
    publishing = CountingClient(port, counts, V311)
    with listening, publishing:
        listening.send(connect_packet(V5, client_id="listening"))
        listening.until(Connack)
        filters = tuple(SubscriptionRequest(each, QoS.EXACTLY_ONCE) for each in ("t/#", "u/+", "$share/g/s/#"))
        listening.send(Subscribe(1, filters))
        listening.until(Suback)
        publishing.send(connect_packet(V311, client_id="publishing"))
        publishing.until(Connack)
        publishing.send(*(publication("t/x", b"%d" % number) for number in range(5)))
        publishing.send(*(publication("t/y", b"1", 1, packet_id=number) for number in range(1, 4)))
        publishing.until(Puback, 3)
        for each in listening.until(Publish, 8):
            if isinstance(each, Publish) and each.packet_id is not None:
                listening.send(Puback(each.packet_id))
        publishing.send(publication("t/z", b"2", 2, packet_id=9))
        publishing.until(Pubrec)
        publishing.send(Pubrel(9))
        publishing.until(Pubcomp)
        (received,) = listening.until(Publish)
        assert isinstance(received, Publish)
        assert received.packet_id is not None
        listening.send(Pubrec(received.packet_id))
        listening.until(Pubrel)
        listening.send(Pubcomp(received.packet_id))
        publishing.send(*(publication(f"r/{number}", b"3", retain=True) for number in range(RETAINED)))
        publishing.send(*[Pingreq()] * 4)
        publishing.until(Pingresp, 4)
        for number in range(KEPT):
            with CountingClient(port, counts) as kept:
                kept.send(connect_packet(V311, client_id=f"kept-{number}", clean_start=False))
                kept.until(Connack)
                kept.send(Subscribe(1, (SubscriptionRequest("k/#", QoS.AT_LEAST_ONCE),)))
                kept.until(Suback)
                kept.send(Disconnect())
                assert kept.ended()
        for version, clean in ((V31, True), (V31, False), (V311, False)) * 4:
            with CountingClient(port, counts, version) as nameless:
                nameless.send(connect_packet(version, client_id="", clean_start=clean))
                (answer,) = nameless.until(Connack)
                assert isinstance(answer, Connack)
                assert answer.reason_code is ReasonCode.CLIENT_IDENTIFIER_NOT_VALID
                assert nameless.ended()
        listening.send(Pingreq())  # Whatever it sent before has been handled.
        listening.until(Pingresp)
        during()


def read(port: int, counts: Counts) -> dict[str, str]:
    """Return what is retained below ``$SYS/broker/``, by the names behind that."""
    with CountingClient(port, counts) as reader:
        reader.send(connect_packet(V311, client_id="reader"))
        reader.until(Connack)
        reader.send(Subscribe(1, (SubscriptionRequest(READING, QoS.AT_MOST_ONCE),)), Pingreq())
        packets = reader.until(Pingresp)
        reader.send(Disconnect())
        while (packet := reader.receive()) is not None:
            packets.append(packet)
    figures = [each for each in packets if isinstance(each, Publish)]
    return {each.topic.removeprefix(FIGURES): each.payload.decode() for each in figures}


def expected(counts: Counts) -> dict[str, str]:
    figures = {
        "clients/connected": 2,
        "clients/active": 2,
        "clients/disconnected": KEPT,
        "clients/inactive": KEPT,
        "clients/expired": 0,
        "clients/total": 2 + KEPT,
        "messages/received": counts.packets_received,
        "messages/sent": counts.packets_sent,
        "publish/messages/received": counts.publishes_received,
        "publish/messages/dropped": 0,
        "bytes/received": counts.bytes_received,
        "bytes/sent": counts.bytes_sent,
        "subscriptions/count": SUBSCRIPTIONS,
        "shared_subscriptions/count": 1,
    }
    return {name: str(value) for name, value in figures.items()}


def differences(figures: dict[str, str], counts: Counts) -> dict[str, tuple[str | None, object]]:
    """Return what of *figures* is not what *counts* says; and what it should be."""
    wrong: dict[str, tuple[str | None, object]] = {
        name: (figures.get(name), value) for name, value in expected(counts).items() if figures.get(name, "0") != value
    }
    retained = len(figures) + RETAINED
    if figures.get("retained messages/count") != str(retained):
        wrong["retained messages/count"] = (figures.get("retained messages/count"), retained)
    if figures.get(SOCKETS, "2") not in {"2", "3"}:  # The reader's may be closing.
        wrong[SOCKETS] = (figures.get(SOCKETS), 2)
    if figures.get("clients/maximum") not in {str(2 + KEPT), str(3 + KEPT)}:  # The reader may have been seen.
        wrong["clients/maximum"] = (figures.get("clients/maximum"), 2 + KEPT)
    totals = {
        "messages/received": counts.packets_received,
        "messages/sent": counts.packets_sent,
        "publish/received": counts.publishes_received,
        "publish/dropped": 0,
        "bytes/received": counts.bytes_received,
        "bytes/sent": counts.bytes_sent,
        "connections": counts.connects,
        "sockets": counts.sockets,
    }
    faded = math.exp(-(int(figures.get("uptime", "0 seconds").split()[0]) + SAMPLED) / 900)
    for name, total in totals.items():
        load = figures.get(f"load/{name}/15min", "0")
        if not total / 15 * faded - 0.01 <= float(load) <= total / 15 + 0.01:  # What came in the last minutes.
            wrong[f"load/{name}/15min"] = (load, total / 15)
    return wrong


def names_with_true_figures(port: int, counts: Counts) -> set[str]:
    """Let the traffic happen; return the names below ``$SYS`` when all figures are true."""
    names: set[str] = set()

    def true_at_last() -> None:
        before: list[Counts] = []
        last: list[dict[str, tuple[str | None, object]]] = []

        def true() -> bool:
            before.append(replace(counts))
            figures = read(port, counts)
            names.update(figures)
            last[:] = [differences(figures, each) for each in before]
            return {} in last

        try:
            wait_until(true, "all figures are true", pause=0.2)
        except AssertionError as error:
            raise AssertionError(min(last, key=len)) from error

    talk(port, counts, true_at_last)
    return names


@contextmanager
def mosquitto(folder: Path) -> Iterator[tuple[int, Counts]]:
    program = shutil.which("mosquitto", path="/usr/bin:/usr/sbin:/usr/local/sbin")
    assert program is not None, "Remedy, as root: apt-get install mosquitto"
    port = free_port()
    configuration = folder / "mosquitto.conf"
    configuration.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nsys_interval 1\n")

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    with subprocess.Popen([program, "-c", configuration]) as server:
        try:
            wait_until(listens, "mosquitto listens")
            yield port, Counts(sockets=1)
        finally:
            server.terminate()


@contextmanager
def fleetgate(folder: Path) -> Iterator[tuple[int, Counts]]:
    port, policy = free_port(), folder / "policy.toml"
    policy.write_text('[role.service]\npublish.allow = ["#"]\nsubscribe.allow = ["#", "$SYS/#"]\n')
    door = "--unsafe-plain-port", str(port), "--unsafe-plain-identity", "spiffe://fleet.internal/service/tester"
    files = BrokerProcess.with_files(folder, Pki(), *door, "--policy-file", str(policy), any_client_id="tester")
    with files:
        yield port, Counts()


def test_mosquittos_names_are_ours_and_mean_the_same(tmp_path: Path) -> None:
    with mosquitto(tmp_path) as (port, counts):
        theirs = names_with_true_figures(port, counts)
    with fleetgate(tmp_path) as (port, counts):
        ours = names_with_true_figures(port, counts)
    assert len(theirs) > 40
    assert theirs - ours == theirs & NOT_OFFERED
    assert not NOT_OFFERED & ours
    assert SOCKETS in ours
