"""One share, and clients of five makers in it beside each other, while members are killed, revoked, stopped, and slow.

At QoS 1 each message reaches a member, and one that reaches two was with one that was lost before its acknowledgement
was read. At QoS 2 no message reaches two members, whatever becomes of them (MQTT 5, 4.8.2): what a session had begun to
send when it ended is nobody's, and everything else reaches somebody.
"""

from __future__ import annotations

import contextlib
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.admin.client import AdminClient
from broker.mqtt.codes import QoS
from broker.mqtt.packets import Pubcomp, Publish, Pubrec, Pubrel
from provisioning.pki.tls import CredentialFiles
from tests.support.broker_process import BrokerProcess, wait_until
from tests.support.enrolled import enrol
from tests.support.provisioning import ProvisioningService
from tests.support.real_clients import RealClient, Running, command_of
from tests.support.tls_client import TlsClient

FAST = {"crl_debounce_seconds": 0.05, "feed_heartbeat_seconds": 1}
MESSAGES = 300
SHARE = "$share/workers/fleet/meters/+/telemetry"
WINDOW = 20
"""What each session may be in the middle of: the broker's ``max_inflight`` here."""


class Member:
    """One member, and what it has said that it got."""

    def __init__(self, running: Running, name: str) -> None:
        self.running, self.name = running, name
        self.got: list[int] = []

    def read(self) -> None:
        """Take what it has said so far."""
        for line in self.running.said_so_far():
            kind, *words = line.split()
            if kind == "message":
                self.got.append(int(words[-1]))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProvisioningService]:
    with ProvisioningService.copied(tmp_path_factory.mktemp("provisioning") / "fleet", FAST) as running:
        yield running


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, service: ProvisioningService) -> Iterator[BrokerProcess]:
    settings = {"limits__max_inflight": WINDOW}
    with BrokerProcess.enrolled(tmp_path_factory.mktemp("share"), service, **settings) as running:
        yield running


@pytest.mark.parametrize("qos", [1, 2])
def test_a_share_of_clients_of_five_makers_loses_and_doubles_nothing(
    broker: BrokerProcess, service: ProvisioningService, tmp_path: Path, qos: int
) -> None:
    def written(name: str, role: str) -> CredentialFiles:
        (enrolled,) = enrol(service, name, role=role)
        return enrolled.write(tmp_path)

    def slow(files: CredentialFiles, name: str) -> Running:
        """Return mosquitto_sub, which takes one message at a time."""
        tls = ["--cafile", str(service.bundle), "--cert", str(files.certificate), "--key", str(files.key)]
        where = ["-V", "5", "-h", "localhost", "-p", str(broker.port), "-i", name]
        wanted = ["-D", "CONNECT", "receive-maximum", "1", "-t", SHARE, "-q", str(qos), "-F", "message %r %q %t %p"]
        return Running(["stdbuf", "-o", "L", "mosquitto_sub", *where, *tls, *wanted], {})

    with contextlib.ExitStack() as stack:
        members: dict[str, Member] = {}
        for client, version in (("paho_c", "5"), ("mqtt_js", "5"), ("aiomqtt", "3.1.1"), ("gmqtt", "5")):
            name = f"{client.replace('_', '-')}-{qos}"
            command, environment = command_of(client, tmp_path)
            real = RealClient(command, version, broker.port, service.bundle, environment)
            running = stack.enter_context(real.run("sub", name, written(name, "service"), SHARE, qos))
            assert running.line() == "ready"
            members[client] = Member(running, name)
        name = f"mosquitto-{qos}"
        members["slow"] = Member(stack.enter_context(slow(written(name, "service"), name)), name)
        with AdminClient.at_socket(broker.dir / "state" / "admin.sock") as asked:
            wait_until(lambda: subscribed(asked) == len(members), "all have subscribed")

        (meter,) = enrol(service, f"meter-{qos}")
        publisher = stack.enter_context(TlsClient(broker.port, service.bundle, meter.credential))
        publisher.connect(client_id=meter.name)

        def publish(numbers: range) -> None:
            for number in numbers:
                topic, payload = f"fleet/meters/{meter.name}/telemetry", b"%d" % number
                if qos == 1:
                    publisher.publish(topic, payload, qos=1)
                    continue
                publisher.send(Publish(topic, payload, qos=QoS.EXACTLY_ONCE, packet_id=1))
                publisher.expect(Pubrec)
                publisher.send(Pubrel(1))
                publisher.expect(Pubcomp)

        publish(range(100))
        members["mqtt_js"].running.send_signal(signal.SIGSTOP)
        publish(range(100, 150))
        members["paho_c"].running.kill()
        publish(range(150, 200))
        service.revoke(device=members["gmqtt"].name, reason="keyCompromise")
        assert wait_until(lambda: broker.events("REVOKED", device=members["gmqtt"].name), "it is put out")
        publish(range(200, MESSAGES))
        members["mqtt_js"].running.send_signal(signal.SIGCONT)

        with AdminClient.at_socket(broker.dir / "state" / "admin.sock") as asked:
            wait_until(lambda: not waiting(asked), "everybody has taken what is his")

        def reached() -> Counter[int]:
            for each in members.values():
                each.read()
            return Counter(number for each in members.values() for number in each.got)

        begun_with_the_lost = 0 if qos == 1 else 2 * WINDOW
        wait_until(lambda: len(reached()) >= MESSAGES - begun_with_the_lost, "nothing else is missing")
        lost = {number for each in ("paho_c", "gmqtt") for number in members[each].got}
        doubled = {number for number, times in reached().items() if times > 1}
        assert doubled <= (lost if qos == 1 else set())
        assert all(len(each.got) > 1 for each in members.values()), "each has had its share"


def subscribed(asked: AdminClient) -> int:
    """Return how many who are connected have subscribed to the share."""
    found = asked.get("/v1/subscriptions", role="service", connected="true")["subscriptions"]
    return sum(each["filter"] == SHARE for each in found)


def waiting(asked: AdminClient) -> int:
    """Return how many messages members have not taken."""
    return sum(each["queued"] + each["inflight"] for each in asked.get("/v1/sessions", role="service")["sessions"])
