"""Whatever the order of acknowledgements with takeover, suspension, revocation, a slow disk and the stop: no loss.

What must hold: a message that was acknowledged to its publisher is delivered to each subscriber whose session is kept,
at QoS 2 once and in order, whoever is taken over, suspended or comes back with another certificate meanwhile; of the
members of a share exactly one gets it, unless it was on its way to one whose session has ended.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from broker.mqtt.codes import ReasonCode
from broker.mqtt.connect import Connack
from broker.mqtt.packets import Packet, Puback, Pubcomp, Publish, Pubrec, Pubrel
from broker.revocation.enforcement import revoke
from provisioning.pki.revocation_reason import RevocationReason
from tests.support.interleavings import Choices, every_order, some_orders
from tests.support.pki import Held, shared_device, shared_pki, shared_service
from tests.support.stepped_scene import Steps
from tests.support.stored import StoredBroker
from tests.support.wire import KEPT, V5, MemoryBroker, WireClient, connect_packet, publication, request

PKI = shared_pki()
TOPIC = "fleet/meters/meter-1/telemetry"
pytestmark = pytest.mark.hypothesis


@pytest.fixture(autouse=True)
def _unlogged() -> Iterator[None]:
    with capture_logs():  # A line takes longer than a step.
        yield


class Party:
    """A client as the standard describes it, over all its connections; it takes one packet a step."""

    def __init__(self, broker: MemoryBroker, name: str, held: Held, **fields: Any) -> None:
        self.broker, self.name, self.held = broker, name, held
        self.fields = {**KEPT, **fields}
        self.clients: list[WireClient] = []
        self.got: list[int] = []
        self.told: set[int] = set()
        """Numbers that are acknowledged."""
        self._open: dict[int, tuple[int, int] | None] = {}
        """What it publishes: packet identifier to number and QoS; None from PUBREC on."""
        self._known: set[int] = set()

    @property
    def client(self) -> WireClient:
        return self.clients[-1]

    def connect(self) -> None:
        client = self.broker.open(self.held)
        self.clients.append(client)
        client.send(connect_packet(V5, client_id=self.name, **self.fields))

    def publish(self, number: int, qos: int) -> None:
        self._open[number] = number, qos
        self.client.send(publication(TOPIC, b"%d" % number, qos, packet_id=number))

    def takes(self) -> bool:
        """Take a packet, on the present connection; return whether there was one."""
        packets = self.client.transport.packets
        if not packets:
            return False
        self._take(self.client._decode(packets.popleft()))
        return True

    def _take(self, packet: Packet) -> None:
        send = self.client.send
        match packet:
            case Connack(reason, present) if reason is ReasonCode.SUCCESS:
                if not present:
                    self._known.clear()
                for packet_id, sent in list(self._open.items()):
                    if sent is not None:
                        send(publication(TOPIC, b"%d" % sent[0], sent[1], packet_id=packet_id, dup=True))
                    elif present:
                        send(Pubrel(packet_id))
            case Puback(packet_id) if packet_id in self._open:
                self.told.add(packet_id)
                del self._open[packet_id]
            case Pubrec(packet_id) if packet_id in self._open:
                self.told.add(packet_id)
                self._open[packet_id] = None
                send(Pubrel(packet_id))
            case Pubcomp(packet_id):
                self._open.pop(packet_id, None)
            case Publish(packet_id=packet_id, qos=qos) if packet_id is not None:
                if qos == 1 or packet_id not in self._known:
                    self.got.append(int(packet.payload))
                if qos == 2:
                    self._known.add(packet_id)
                send((Pubrec if qos == 2 else Puback)(packet_id))
            case Pubrel(packet_id):
                self._known.discard(packet_id)
                send(Pubcomp(packet_id))


def everything(*parties: Party) -> None:
    """Let all take what has come, and answer, until nothing more does."""
    while any(each.takes() for each in parties):
        pass


def comes_again(party: Party, *held: Held) -> Steps:
    """Let *party* connect once more, with each certificate."""
    for number, each in enumerate(held):
        if number:
            yield
        party.held = each
        party.connect()


def reads(party: Party, steps: int) -> Steps:
    for _ in range(steps):
        yield lambda: bool(party.client.transport.packets)
        party.takes()


def is_revoked(broker: MemoryBroker, held: Held, reason: RevocationReason) -> None:
    revoke(broker.engine, replace(held.revocation, reason=reason), broker.now)
    broker.settle()


@pytest.mark.parametrize("qos", [1, 2])
def test_what_was_acknowledged_arrives_whoever_is_taken_over_or_suspended_meanwhile(tmp_path: Path, qos: int) -> None:
    numbers = iter(range(1_000_000))
    reading, other = shared_service("backend"), PKI.service("backend")
    sending, renewed = shared_device("meter-1"), PKI.device("meter-1")

    def run(choices: Choices) -> None:
        directory = tmp_path / str(next(numbers))
        directory.mkdir()
        broker = StoredBroker(directory, max_connects_per_identity=0)
        with contextlib.closing(broker):
            publisher, reader = Party(broker, "meter-1", sending), Party(broker, "backend", reading, receive_maximum=2)
            for each in (publisher, reader):
                each.connect()
                everything(each)
            reader.client.subscribe("fleet/#", qos=qos)
            broker.held = True

            def publishes() -> Steps:
                for number in range(1, 4):
                    if not publisher.client.closed:
                        publisher.publish(number, qos)
                    yield

            def suspends() -> Steps:
                is_revoked(broker, reading, RevocationReason.CERTIFICATE_HOLD)
                yield
                broker.engine.admission.status.index.release(reading.revocation.key)
                is_revoked(broker, sending, RevocationReason.SUPERSEDED)

            def writes() -> Steps:
                for _ in range(6):
                    yield
                    broker.write()

            def stops() -> Steps:
                broker.engine.stop(broker.now)
                yield from ()

            is_stopped = choices.among(("it goes on", "it stops"))
            every_order(
                {
                    "the publisher": publishes(),
                    "it reads": reads(publisher, 5),
                    "it comes again": comes_again(publisher, renewed),
                    "the reader": reads(reader, 8),
                    "it comes back": comes_again(reader, other, other),
                    "the feed": suspends(),
                    "the disk": writes(),
                    **({"the stop": stops()} if is_stopped else {}),
                },
                choices,
            )
            broker.held = False
            broker.settle()
            publisher.held, reader.held = renewed, other
            if is_stopped:
                publisher.broker = reader.broker = broker.killed()
            for each in (publisher, reader):
                if each.client.closed:
                    each.connect()
            everything(publisher, reader)
            reader.broker.settle()
            everything(publisher, reader)
            assert set(reader.got) >= publisher.told, "acknowledged, and lost"
            if qos == 2:
                assert reader.got == sorted(set(reader.got)), "twice, or out of order"
            (session,) = [each for each in reader.broker.engine.registry.all() if each.client_id == "backend"]
            assert not session.queued
            assert not session.inflight, "under way still, and nothing comes"

    some_orders(run, 8, 1_000)


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("reason", [RevocationReason.KEY_COMPROMISE, RevocationReason.CERTIFICATE_HOLD])
def test_of_a_share_one_member_gets_what_another_leaves_behind(qos: int, reason: RevocationReason) -> None:
    """Two members leave, one by one; the third stays."""
    members = [PKI.service(f"w{number}") for number in range(3)]

    def run(choices: Choices) -> None:
        broker = MemoryBroker(max_connects_per_identity=0)
        publisher = Party(broker, "meter-1", shared_device("meter-1"))
        parties = [Party(broker, f"w{number}", held, receive_maximum=1) for number, held in enumerate(members)]
        for each in (publisher, *parties):
            each.connect()
            everything(each)
        for each in parties:
            each.client.subscribe(request("$share/w/fleet/#", qos))
        on_the_way: Counter[int] = Counter()
        """How often what has not been taken was sent to one whose session has ended."""
        ended = parties[: 1 if reason is RevocationReason.CERTIFICATE_HOLD else 2]

        def publishes() -> Steps:
            for number in range(1, 6):
                publisher.publish(number, qos)
                yield

        def leaves() -> Steps:
            parties[0].client.leave(session_expiry_interval=0)
            yield
            is_revoked(broker, members[1], reason)
            yield
            if reason is RevocationReason.CERTIFICATE_HOLD:
                broker.engine.admission.status.index.release(members[1].revocation.key)
                parties[1].connect()

        def note(_after: str) -> None:
            for each in ended:
                if each.client.closed:
                    for packet in each.client.received():
                        if isinstance(packet, Publish):
                            on_the_way[int(packet.payload)] += 1

        every_order(
            {
                "the publisher": publishes(),
                "the first": reads(parties[0], 3),
                "the second": reads(parties[1], 3),
                "the third": reads(parties[2], 3),
                "who leaves": leaves(),
            },
            choices,
            note,
        )
        everything(publisher, *parties)
        got = Counter(number for each in parties for number in each.got)
        for number in publisher.told:
            assert got[number] or (qos == 2 and on_the_way[number]), f"{number} is lost"
            assert qos == 1 or got[number] + on_the_way[number] <= 1, f"{number} was sent twice"
        assert publisher.told == set(range(1, 6))

    some_orders(run, 8, 1_000)
