"""The clock of a running broker is set, by libfaketime: what is by the clock goes by it, and what lasts does not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from broker.mqtt.codes import ReasonCode
from broker.mqtt.connect import Connack
from broker.mqtt.packets import Publish
from tests.support import programs
from tests.support.broker_process import BrokerProcess, wait_until
from tests.support.crl import crl
from tests.support.enrolled import enrol
from tests.support.faketime import FakeClock
from tests.support.listed import answer
from tests.support.pki import Pki
from tests.support.provisioning import ProvisioningService
from tests.support.tls_client import TlsClient
from tests.support.web import WebServer
from tests.support.wire import V5, KeptSession, connect_packet


def test_a_clock_that_is_set_ahead_ends_connections_with_their_certificates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pki = Pki()
    held = {
        name: pki.device(name, not_after=datetime.now(UTC) + timedelta(hours=hours))
        for name, hours in (("short", 1), ("long", 20))
    }
    clock = FakeClock.new(tmp_path)
    clock.enter(monkeypatch)
    with (
        BrokerProcess.with_files(tmp_path / "b", pki) as broker,
        TlsClient(broker.port, pki.anchors, held["short"].credential) as short,
        TlsClient(broker.port, pki.anchors, held["long"].credential) as long,
    ):
        assert programs._fitting("broker", broker.environment), "nothing else says that it is not forked"
        short.connect(client_id="short")
        long.connect(client_id="long")
        clock.set(timedelta(hours=2))
        farewell = short.farewell()
        assert farewell.reason_code is ReasonCode.NOT_AUTHORIZED
        assert str(farewell.properties.reason_string).startswith("EXPIRED: ")
        (said,) = wait_until(lambda: broker.events("CLOCK_SET"), "the broker has noticed")
        assert abs(said["seconds"] - 7200) <= 1
        long.check_alive()


def test_lists_go_by_the_clock_as_it_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a battery starts with a clock that is behind, and its CA says nothing new when it is set."""
    pki, clock = Pki(), FakeClock.new(tmp_path)
    device = pki.device("meter-1", not_after=datetime.now(UTC) + timedelta(days=1))
    clock.enter(monkeypatch)
    with WebServer() as web:
        web.pages["/crl"] = crl(pki.issuing, age=-timedelta(hours=1), life=timedelta(hours=2))
        with BrokerProcess.with_lists(tmp_path / "b", pki, crl_urls=f"{web.url}/crl") as broker:
            wait_until(lambda: broker.events("CRL_NOT_YET_VALID"), "the list is refused")
            assert answer(broker, pki.anchors, device)[1] == "CRL_MISSING"
            assert len(broker.events("CRL_NOT_YET_VALID")) == 1
            clock.set(timedelta(hours=2))
            wait_until(lambda: broker.events("CRL_CURRENT"), "the same list is read again")
            assert answer(broker, pki.anchors, device) == (ReasonCode.SUCCESS, "")
            web.pages["/crl"] = crl(pki.issuing, number=2, age=-timedelta(hours=3), life=timedelta(hours=5))
            clock.set(timedelta(hours=4))
            wait_until(lambda: broker.events("CRL_CURRENT", number=2), "none waits until its old one would have ended")
            assert answer(broker, pki.anchors, device) == (ReasonCode.SUCCESS, "")


def test_what_lasts_so_long_lasts_so_long_whatever_the_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keep alive, sessions and messages; also those that were stored before, after a restart."""
    pki, clock = Pki(), FakeClock.new(tmp_path)
    long: dict[str, Any] = {
        "not_before": datetime.now(UTC) - timedelta(days=2),
        "not_after": datetime.now(UTC) + timedelta(days=3),
    }
    meter, backend = pki.device("meter-1", **long), pki.service("backend", **long)
    topic = "fleet/meters/meter-1/state"
    kept: KeptSession = {"clean_start": False, "session_expiry_interval": 3600}
    clock.enter(monkeypatch)
    broker = BrokerProcess.with_files(tmp_path / "b", pki)
    with broker, TlsClient(broker.port, pki.anchors, meter.credential) as device:
        with TlsClient(broker.port, pki.anchors, backend.credential) as service:
            service.connect(client_id="backend", **kept)
            service.subscribe("fleet/#", qos=1)
            service.leave()
        device.connect(client_id="meter-1", keep_alive=600)
        device.publish(topic, b"1", qos=1, message_expiry_interval=600)
        clock.set(timedelta(days=1))
        wait_until(lambda: broker.events("CLOCK_SET"), "the broker has noticed")
        device.check_alive()
        device.publish(topic, b"2", qos=1, message_expiry_interval=600)
        broker.stop()
        broker.start()
        with TlsClient(broker.port, pki.anchors, backend.credential) as service:
            assert service.connect(client_id="backend", **kept).session_present
            assert sorted(service.expect(Publish).payload for _ in range(2)) == [b"1", b"2"]


def test_a_broker_that_has_slept_admits_nobody_until_it_knows_what_was_revoked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It slept for longer than its grace, and the service is not there yet when it wakes."""
    with ProvisioningService.copied(tmp_path / "fleet", {"feed_heartbeat_seconds": 0.2}) as service:
        (device,) = enrol(service, "meter")
        clock = FakeClock.new(tmp_path)
        clock.enter(monkeypatch)
        with BrokerProcess.enrolled(tmp_path / "b", service) as broker:

            def answered() -> ReasonCode:
                with TlsClient(broker.port, service.bundle, device.credential) as client:
                    client.send(connect_packet(V5, client_id="meter"))
                    return client.expect(Connack).reason_code

            assert answered() is ReasonCode.SUCCESS
            address = service.port
            service.stop()
            wait_until(lambda: broker.events("FEED_LOST"), "the broker notices that the feed is lost")
            assert answered() is ReasonCode.SUCCESS, "within the grace"
            clock.set(timedelta(hours=8))
            wait_until(lambda: broker.events("CLOCK_SET"), "the broker has noticed")
            assert answered() is ReasonCode.SERVER_UNAVAILABLE
            clock.set(timedelta())  # As the service's is; what is unknown is known by that no sooner.
            wait_until(lambda: broker.events("CLOCK_SET", seconds=-28800), "the broker has noticed that, too")
            assert answered() is ReasonCode.SERVER_UNAVAILABLE
            service.start(port=address)
            wait_until(lambda: answered() is ReasonCode.SUCCESS, "the feed was read", pause=0.2)
