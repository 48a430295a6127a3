"""Newcomers while revocation data is missing: what each bundle's own policies say, and what an operator is shown."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from broker.cli import app
from broker.mqtt.codes import ReasonCode
from broker.mqtt.connect import Connack
from broker.mqtt.framing import split_frames
from broker.mqtt.packets import decode_packet
from device_sim.stage.foreign_process import free_port
from provisioning.pki.tls import client_context
from tests.support.broker_process import PATIENCE, BrokerProcess, wait_until
from tests.support.crl import crl
from tests.support.enrolled import Enrolled, enrol
from tests.support.listed import answer, replace_file
from tests.support.pki import DOMAIN, Held, Pki
from tests.support.provisioning import ProvisioningService
from tests.support.tls_client import TlsClient
from tests.support.wire import V5, connect_packet

IN = (ReasonCode.SUCCESS, "")
UNAVAILABLE = (ReasonCode.SERVER_UNAVAILABLE, "REVOCATION_STATUS_UNKNOWN")
CONFIG = """
crl_check_seconds = 0.05
{own}
[[trust]]
name = "fleet"
anchors = ["{fleet}"]
roles = ["device", "broker"]
feed = true
{terms}

[[trust]]
name = "partner"
anchors = ["{partner}"]
trust_domain = "{domain}"
crlfile = ["{crls}"]
crl_policy = "grace 1h"
ocsp_responder = "http://127.0.0.1:1/ocsp"
ocsp_policy = "advisory"
"""


@dataclass
class Fleet:
    """A broker with a bundle that the feed speaks of, and one that it knows nothing of."""

    broker: BrokerProcess
    service: ProvisioningService
    partner: Pki
    config: Path
    crls: Path
    device: Enrolled
    foreign: Held

    def write(self, *, own: str = "", terms: str = "") -> None:
        self.config.write_text(
            CONFIG.format(
                own=own, terms=terms, fleet=self.service.bundle, partner=self.config.with_name("partner.pem"),
                domain=DOMAIN, crls=self.crls,
            )
        )  # fmt: skip

    def answers(self) -> list[tuple[ReasonCode, str]]:
        """Return what a device of ours is told, and one of the partner's."""
        with TlsClient(self.broker.port, self.service.bundle, self.device.credential) as client:
            client.send(connect_packet(V5, client_id=""))
            connack = client.expect(Connack)
        ours = connack.reason_code, (connack.properties.reason_string or "").partition(":")[0]
        return [ours, answer(self.broker, self.service.bundle, self.foreign)]

    def status(self, *options: str) -> str:
        return self.asked(*options).stdout

    def asked(self, *options: str) -> Result:
        place = ("--state-dir", str(self.broker.dir / "state"))
        return CliRunner().invoke(app, ["crl", "status", *place, *options])

    def newcomers(self) -> dict[tuple[str, str], dict[str, Any]]:
        return {(each["bundle"], each["source"]): each for each in json.loads(self.status("--json"))["newcomers"]}


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with ProvisioningService.copied(tmp_path / "fleet", {"feed_heartbeat_seconds": 1}) as service:
        (device,) = enrol(service, "meter")
        partner = Pki()
        config, crls = tmp_path / "broker.toml", tmp_path / "partner.crl"
        (tmp_path / "partner.pem").write_text(partner.anchors)
        crls.write_bytes(crl(partner.issuing))
        broker = BrokerProcess.enrolled(tmp_path / "b", service, "--config", str(config))
        yield Fleet(broker, service, partner, config, crls, device, partner.device("guest"))


@pytest.mark.parametrize(
    ("own", "terms", "ours"),
    [
        ('feed_policy = "advisory"', 'feed_policy = "require"', UNAVAILABLE),
        ('feed_policy = "require"', 'feed_policy = "grace 1h"', IN),
        ("revocation_grace = 600.0", "", IN),
    ],
)
def test_a_lost_feed_means_for_each_bundle_what_its_own_policy_says(
    fleet: Fleet, own: str, terms: str, ours: tuple[ReasonCode, str]
) -> None:
    fleet.write(own=own, terms=terms)
    with fleet.broker:
        assert fleet.answers() == [IN, IN]
        assert fleet.asked().exit_code == 0
        fleet.service.stop()
        wait_until(lambda: fleet.broker.events("FEED_LOST"), "the broker knows that the feed is lost")
        assert fleet.answers() == [ours, IN]
        assert fleet.asked().exit_code == 1, "a monitor that looks at nothing else knows it, too"
        shown = fleet.newcomers()["fleet", "feed"]
        assert shown["admitted"] is (ours == IN)
        assert shown["detail"].endswith("ago, and lost")
        assert ("partner", "feed") not in fleet.newcomers()


def test_another_policy_of_a_bundle_counts_after_a_reload(fleet: Fleet) -> None:
    fleet.write(own='feed_policy = "require"')
    with fleet.broker:
        fleet.service.stop()
        wait_until(lambda: fleet.broker.events("FEED_LOST"), "the broker knows that the feed is lost")
        assert fleet.answers() == [UNAVAILABLE, IN]
        fleet.write(own='feed_policy = "require"', terms='feed_policy = "grace 1h"')
        fleet.broker.send_signal(signal.SIGHUP)
        wait_until(lambda: fleet.broker.events("RELOADED", part="trust"), "the bundles are read again")
        assert fleet.answers() == [IN, IN]


def test_status_says_of_each_bundle_and_source_what_its_newcomers_meet(fleet: Fleet) -> None:
    fleet.write(terms='feed_policy = "grace 30s"')
    with fleet.broker:
        assert fleet.answers() == [IN, IN]
        wait_until(
            lambda: fleet.newcomers()["partner", "OCSP"]["detail"].endswith("no valid answer"), "it is found out"
        )
        said = fleet.status()
        rows = [re.split(r"\s{2,}", line) for line in said.split("\n\n")[1].splitlines()]
        issuer = fleet.partner.issuing.certificate.subject.rfc4514_string()
        assert [row[:4] for row in rows] == [
            ["newcomers of", "by", "policy", "are"],
            ["fleet", "feed", "grace 30s", "admitted"],
            ["partner", f"CRL of {issuer}", "grace 3600s", "admitted"],
            ["partner", "OCSP", "advisory", "admitted"],
        ]
        for age, admitted in ((timedelta(minutes=90), True), (timedelta(hours=5), False)):
            replace_file(fleet.crls, crl(fleet.partner.issuing, number=3 if admitted else 4, age=age))
            # An expired list replaces only what is expired too: so the broker begins with it.
            fleet.broker.stop()
            fleet.broker.start()
            fleet.answers()
            shown = fleet.newcomers()["partner", "CRL"]
            assert shown["admitted"] is admitted
            assert shown["detail"].startswith("expired ")


def test_who_comes_while_the_broker_starts_waits_until_it_knows_who_is_revoked(tmp_path: Path) -> None:
    with ProvisioningService.copied(tmp_path / "fleet") as service, ExitStack() as stack:
        meter, gone = enrol(service, "meter", "gone")
        broker = BrokerProcess.enrolled(tmp_path / "b", service)
        with broker:
            pass
        service.revoke(device="gone")
        port = free_port()
        broker.arguments[broker.arguments.index("--port") + 1] = str(port)
        os.kill(service.pid, signal.SIGSTOP)
        stack.callback(os.kill, service.pid, signal.SIGCONT)
        starting = stack.enter_context(ThreadPoolExecutor(1)).submit(broker.start)
        stack.callback(lambda: broker.running and broker.stop())
        waiting = []
        for each in (meter, gone):
            raw = wait_until(lambda: connected(port), "the broker listens")
            tls = client_context(service.bundle, each.credential).wrap_bio(
                incoming := ssl.MemoryBIO(), outgoing := ssl.MemoryBIO(), server_hostname="localhost"
            )
            with pytest.raises(ssl.SSLWantReadError):
                tls.do_handshake()
            raw.sendall(outgoing.read())
            waiting.append((stack.enter_context(raw), tls, incoming, outgoing))
        assert select.select([raw for raw, *_ in waiting], [], [], 0.5)[0] == [], "it has let somebody in already"
        assert not starting.done()
        os.kill(service.pid, signal.SIGCONT)
        answers = [answered(*each) for each in waiting]
        assert [connack.reason_code for connack in answers] == [ReasonCode.SUCCESS, ReasonCode.NOT_AUTHORIZED]
        starting.result()
        assert not broker.events("REVOCATION_STATUS_UNKNOWN")


def connected(port: int) -> socket.socket | None:
    try:
        return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    except ConnectionRefusedError:
        return None


def answered(raw: socket.socket, tls: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> Connack:
    """Go on with the handshake, send a CONNECT, and return what it is answered."""

    def step(act: Callable[[], Any]) -> Any:
        while True:
            try:
                done = act()
            except ssl.SSLWantReadError:
                raw.sendall(outgoing.read())
                incoming.write(raw.recv(65536))
            else:
                raw.sendall(outgoing.read())
                return done

    step(tls.do_handshake)
    step(lambda: tls.write(connect_packet(V5, client_id="").encode()))
    data = step(lambda: tls.read(4096))
    [(first, body, end)], _ = split_frames(data, len(data))
    packet = decode_packet(first, data[body:end], V5)
    assert isinstance(packet, Connack)
    return packet
