"""What the broker has acknowledged outlives a power failure at any moment: no message lost, none doubled at QoS 2."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.admin.client import AdminClient
from broker.audit.verification import verify
from broker.mqtt.codes import QoS, ReasonCode
from broker.mqtt.connect import Connack
from broker.mqtt.packets import Puback, Pubcomp, Publish, Pubrec, Pubrel, Suback, Subscribe, SubscriptionRequest
from provisioning.directory.audit_chain import read_key
from tests.support.broker_process import BrokerProcess, wait_until
from tests.support.enrolled import Enrolled, enrol
from tests.support.pki import Pki
from tests.support.power_cuts import Disk, PowerCut, PowerCuts, quick_folder
from tests.support.provisioning import ProvisioningService
from tests.support.recorded_disk import RecordedDisk, listing
from tests.support.tls_client import Ended, TlsClient
from tests.support.wire import KEPT, V5, connect_packet, id_of, publication

SEED = 20_261_129
TOPIC, STATE = "fleet/meters/meter/telemetry", "fleet/meters/meter/state"
FILTER, OTHER = "fleet/meters/+/telemetry", "fleet/meters/+/state"
MESSAGES = 4
EXACT = 2
"""Every second message is of QoS 2."""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with quick_folder(tmp_path) as made:
        yield made


class Scene:
    """A broker that is recorded, a meter that publishes, and a backend that has a session."""

    def __init__(self, folder: Path, pki: Pki) -> None:
        self.pki = pki
        self.left = folder / "left"
        self.running = BrokerProcess.with_files(folder / "disk", pki)
        self.again = BrokerProcess.with_files(self.left, pki)
        self.disk = RecordedDisk(folder / "disk", folder / "record")
        self.cuts = PowerCuts(self.disk)
        self.done: set[int] = set()
        self.under_way: dict[int, int] = {}
        self._usual = self.running.environment
        self.running.environment = self._usual | self.disk.environment

    def check_record(self) -> None:
        """Check that all that the broker has written is in the record."""
        (everything,) = self.cuts.at([len(self.disk.records())], [Disk.ALL], SEED)
        found = {name: content for name, (_, content) in everything.tree.items()}
        there = {name: content for name, content in listing(self.disk.folder).items() if not name.endswith(".log")}
        assert found == there

    def come(self, broker: BrokerProcess, name: str) -> TlsClient:
        """Connect the meter or the backend, with its session."""
        held = self.pki.device(name) if name == "meter" else self.pki.service(name)
        client = TlsClient(broker.port, broker.dir / "anchors.pem", held.credential)
        self.present = client.connect(client_id=name, **KEPT).session_present
        return client

    def left_by(self, cut: PowerCut) -> BrokerProcess:
        """Return the broker of the same settings, on what *cut* has left."""
        cut.write(self.left)
        return self.again


def play(scene: Scene) -> None:
    """Let the meter publish before and after the backend has come back; note what each of them has been told."""
    mark, broker = scene.disk.mark, scene.running
    with scene.come(broker, "backend") as backend:
        backend.subscribe(FILTER, qos=2)
        mark("subscribed")
        backend.subscribe(OTHER, qos=1)
        mark("subscribed other")
    with scene.come(broker, "meter") as meter:
        meter.publish(STATE, b"on", qos=1, retain=True)
        mark("retained")
        for number in range(MESSAGES):
            send(scene, meter, number)
        with scene.come(broker, "backend") as backend:
            receive(scene, backend, MESSAGES)
            for number in range(MESSAGES, 2 * MESSAGES):
                send(scene, meter, number)
            receive(scene, backend, 2 * MESSAGES)
        send(scene, meter, 2 * MESSAGES)


def send(scene: Scene, meter: TlsClient, number: int) -> None:
    """Publish *number*, and note what the broker answers."""
    qos = 2 if number % EXACT == 0 else 1
    scene.disk.mark(f"sent {number}")
    meter.send(publication(TOPIC, b"%d" % number, qos, packet_id=number + 1))
    if qos == 1:
        meter.expect(Puback)
    else:
        meter.expect(Pubrec)
        scene.disk.mark(f"received {number}")
        meter.send(Pubrel(number + 1))
        meter.expect(Pubcomp)
    scene.disk.mark(f"acknowledged {number}")


def publish_once(meter: TlsClient, payload: bytes) -> None:
    """Publish *payload* at QoS 2, to the end of its exchange."""
    meter.send(publication(TOPIC, payload, 2, packet_id=60_000))
    meter.expect(Pubrec)
    meter.send(Pubrel(60_000))
    meter.expect(Pubcomp)


def receive(scene: Scene, backend: TlsClient, until: int) -> None:
    """Take what comes, to the end of the exchange of every message below *until*."""
    left = set(range(until)) - scene.done
    while left:
        packet = backend.next_packet()
        if isinstance(packet, Pubrel):
            number = scene.under_way.pop(packet.packet_id)
            backend.send(Pubcomp(packet.packet_id))
        else:
            assert isinstance(packet, Publish)
            if packet.topic == STATE:
                backend.send(Puback(id_of(packet)))
                continue
            number = int(packet.payload)
            scene.disk.mark(f"got {number}")
            if packet.qos == 2:
                scene.under_way[id_of(packet)] = number
                backend.send(Pubrec(id_of(packet)))
                continue
            backend.send(Puback(id_of(packet)))
        scene.disk.mark(f"done {number}")
        scene.done.add(number)
        left.discard(number)


def test_what_was_acknowledged_is_kept(folder: Path, pki: Pki) -> None:
    scene = Scene(folder, pki)
    with scene.running:
        play(scene)
        scene.running.stop(signal.SIGKILL)
    scene.check_record()
    for cut in scene.cuts.few(8, SEED):
        with scene.left_by(cut) as broker:
            check_kept(scene, broker, Known(cut.marks))


class Known:
    """What the meter and the backend knew when the power failed."""

    def __init__(self, marks: tuple[str, ...]) -> None:
        self.marks = set(marks)

    def __call__(self, what: str) -> set[int]:
        return {int(each.split()[1]) for each in self.marks if each.split()[0] == what and each[-1].isdigit()}


def check_kept(scene: Scene, broker: BrokerProcess, known: Known) -> None:
    """Let the meter end what it has begun, and check what the backend gets."""
    unfinished = known("sent") - known("acknowledged")
    with scene.come(broker, "meter") as meter:
        for number in unfinished:
            finish(meter, number, received=number in known("received"))
        meter.publish(TOPIC, b"-1", qos=1)
        publish_once(meter, b"-2")
    if "retained" in known.marks:
        with scene.come(broker, "looker") as looker:
            looker.send(Subscribe(1, (SubscriptionRequest(OTHER, QoS.AT_MOST_ONCE),)))
            assert {type(looker.next_packet()), type(looker.next_packet())} == {Suback, Publish}
    with scene.come(broker, "backend") as backend:
        assert scene.present or "subscribed" not in known.marks
        if "subscribed" not in known.marks:
            return
        got: list[int] = []
        ends: set[int] = {-1, -2}
        while ends or scene.under_way:
            packet = backend.next_packet()
            match packet:
                case Pubrel():
                    backend.send(Pubcomp(packet.packet_id))
                case Publish():
                    if packet.topic != STATE:
                        got.append(int(packet.payload))
                        ends.discard(got[-1])
                    backend.send(Puback(id_of(packet)) if packet.qos == 1 else Pubrec(id_of(packet)))
    kept = {number for number in got if number >= 0}
    assert kept >= (known("acknowledged") | known("received") | unfinished) - known("got") - known("done")
    exact = [number for number in got if number >= 0 and number % EXACT == 0]
    assert len(exact) == len(set(exact)), "doubled"
    assert not set(exact) & known("done"), "doubled after its exchange had ended"


def finish(meter: TlsClient, number: int, *, received: bool) -> None:
    """Do what a client does, on its next connection, with a message whose exchange has not ended."""
    packet_id = number + 1
    if number % EXACT:
        meter.send(publication(TOPIC, b"%d" % number, 1, packet_id=packet_id, dup=True))
        meter.expect(Puback)
        return
    if not received:
        meter.send(publication(TOPIC, b"%d" % number, 2, packet_id=packet_id, dup=True))
        meter.expect(Pubrec)
    meter.send(Pubrel(packet_id))
    meter.expect(Pubcomp)


def test_a_session_that_has_ended_stays_so(folder: Path, pki: Pki) -> None:
    """A client that was told so begins its packet identifiers afresh: the old session would take them for its own."""
    scene = Scene(folder, pki)
    mark, running = scene.disk.mark, scene.running
    with running:
        with scene.come(running, "backend") as backend:
            backend.subscribe(FILTER, qos=2)
        with scene.come(running, "leaver"):
            pass
        with scene.come(running, "meter") as meter:
            meter.send(publication(TOPIC, b"0", 2, packet_id=1))
            meter.expect(Pubrec)
        with TlsClient(running.port, running.dir / "anchors.pem", pki.device("meter").credential) as meter:
            assert not meter.connect(client_id="meter", session_expiry_interval=600).session_present
            mark("afresh")
            send(scene, meter, 0)
        with AdminClient.at_socket(running.dir / "state" / "admin.sock") as admin:
            assert admin.post("/v1/sessions/kick", {"client": "leaver", "forget": True})["stored"]
        mark("forgotten")
        running.stop(signal.SIGKILL)
    for cut in scene.cuts.few(4, SEED):
        known = Known(cut.marks)
        if "afresh" not in known.marks:
            continue
        with scene.left_by(cut) as broker:
            with scene.come(broker, "meter") as meter:
                if 0 not in known("acknowledged"):
                    finish(meter, 0, received=0 in known("received"))
                publish_once(meter, b"-1")
            with scene.come(broker, "backend") as backend:
                assert got_until_the_last(backend).count(0) == 2, cut
            with scene.come(broker, "leaver"):
                assert not scene.present or "forgotten" not in known.marks


def got_until_the_last(backend: TlsClient) -> list[int]:
    """Return what *backend* gets until ``-1``."""
    got: list[int] = []
    while -1 not in got:
        packet = backend.next_packet()
        if isinstance(packet, Pubrel):
            backend.send(Pubcomp(packet.packet_id))
        else:
            assert isinstance(packet, Publish)
            got.append(int(packet.payload))
            backend.send(Puback(id_of(packet)) if packet.qos == 1 else Pubrec(id_of(packet)))
    return got


def test_a_certificate_whose_token_is_spent_is_kept_and_who_was_revoked_stays_out(folder: Path) -> None:
    settings: dict[str, Any] = {"audit_policy": "require", "audit_max_bytes": 64 * 1024}
    with ProvisioningService.copied(folder / "fleet", {"crl_debounce_seconds": 0.05}) as service:
        good, bad = enrol(service, "meter-1", "meter-2")
        first = BrokerProcess.enrolled(folder / "disk", service, **settings, audit_log=folder / "disk/log/audit.jsonl")
        disk = RecordedDisk(folder / "disk", folder / "record")
        cuts = PowerCuts(disk)
        first.environment |= disk.environment
        left = folder / "left"
        again = BrokerProcess(left, first.arguments[5:], settings | {"audit_log": left / "log/audit.jsonl"})
        with first:
            disk.mark("ready")
            for held in (good, bad):
                with TlsClient(first.port, service.bundle, held.credential) as client:
                    client.connect(client_id=held.name)
            service.revoke(device=bad.name)
            wait_until(lambda: not tried(first, service, bad), "it is out")
            disk.mark("revoked")
            first.stop(signal.SIGKILL)
        for cut in cuts.few(10, SEED):
            cut.write(left)
            if "ready" not in cut.marks and not (cut.tree.get("state/broker.pem") or (0, b""))[1]:
                code, said = again.fail()
                assert code, cut
                assert "TOKEN_USED: this enrolment token was used already: ask for a new one" in said, cut
                continue
            with again:
                assert tried(again, service, good), cut
                assert not tried(again, service, bad), cut
            verdict = verify(left / "log" / "audit.jsonl", read_key(left / "state" / "audit.key"))
            assert [each for each in verdict.findings if "the head is missing" not in each] == [], cut
            assert not verdict.findings or "ready" not in cut.marks, cut


def tried(broker: BrokerProcess, service: ProvisioningService, held: Enrolled) -> bool:
    """Whether *broker* admits *held*."""
    with TlsClient(broker.port, service.bundle, held.credential) as client:
        try:
            client.send(connect_packet(V5, client_id=held.name))
            return client.expect(Connack).reason_code is ReasonCode.SUCCESS
        except Ended:
            return False


def test_what_is_acknowledged_after_a_sync_that_failed_once_is_kept(folder: Path, pki: Pki) -> None:
    """The kernel reports a failed write once, and takes it for written: all of it must be written again."""
    scene = Scene(folder, pki)
    mark, acknowledged = scene.disk.mark, 0
    with scene.running as broker:
        with scene.come(broker, "backend") as backend:
            backend.subscribe(FILTER, qos=2)
        mark("subscribed")
        with scene.come(broker, "meter") as meter:
            for number in range(1000):
                if number in {2, 6}:
                    scene.disk.fail_a_sync()
                meter.send(publication(TOPIC, b"%d" % number, 1, packet_id=number + 1))
                if meter.expect(Puback).reason_code is ReasonCode.SUCCESS:
                    mark(f"acknowledged {number}")
                    acknowledged += number > 6
                if acknowledged == 3:
                    break
        broker.stop(signal.SIGKILL)
    scene.check_record()
    assert [each.kind for each in scene.disk.records()].count("X") == 2
    assert len(broker.events("STORE_FAILED")) == 2
    for cut in scene.cuts.few(4, SEED):
        known = Known(cut.marks)
        if "subscribed" not in known.marks:
            continue
        with scene.left_by(cut) as again:
            with scene.come(again, "meter") as meter:
                meter.publish(TOPIC, b"-1", qos=1)
            with scene.come(again, "backend") as backend:
                assert set(got_until_the_last(backend)) >= known("acknowledged"), cut
