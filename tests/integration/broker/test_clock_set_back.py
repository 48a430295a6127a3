"""The clock of a running broker is set back by libfaketime: what has expired has expired all the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from broker.mqtt.codes import ReasonCode
from broker.mqtt.connect import Connack
from tests.support.broker_process import BrokerProcess, wait_until
from tests.support.crl import crl
from tests.support.enrolled import Enrolled, enrol
from tests.support.faketime import FakeClock
from tests.support.listed import ListedBroker
from tests.support.pki import Pki
from tests.support.provisioning import ProvisioningService
from tests.support.tls_client import TlsClient
from tests.support.wire import V5, KeptSession, connect_packet

KEPT: KeptSession = {"clean_start": False, "session_expiry_interval": 3600}
TWO_HOURS = timedelta(hours=2)


@dataclass
class Fleet:
    """A service, a broker that follows it, and a clock of its own for each."""

    service: ProvisioningService
    services_clock: FakeClock
    broker: BrokerProcess
    brokers_clock: FakeClock

    def client(self, device: Enrolled, **options: object) -> TlsClient:
        return TlsClient(self.broker.port, self.service.bundle, device.credential, **options)  # type: ignore[arg-type]

    def answered(self, device: Enrolled) -> str:
        """Connect as *device*; return the code of the refusal, or that there is none."""
        with self.client(device) as client:
            client.send(connect_packet(V5, client_id=device.name))
            connack = client.expect(Connack)
        return (connack.properties.reason_string or "admitted").partition(":")[0]

    def both(self, ahead: timedelta) -> None:
        """Set both clocks, the broker's less, and wait until it has heard so."""
        self.services_clock.set(ahead)
        self.brokers_clock.set(ahead - timedelta(minutes=3))
        wait_until(lambda: self.broker.events("CLOCK_BEHIND"), "the service has said what time it is")

    def set_back(self) -> None:
        """Set the broker's clock alone back to the beginning."""
        self.brokers_clock.set(timedelta())
        wait_until(
            lambda: any(each["seconds"] < 0 for each in self.broker.events("CLOCK_SET")), "the broker has noticed"
        )

    def wait_until_admitted(self, device: Enrolled) -> None:
        """Wait until the feed has spoken: by a clock that was set ahead what is known is as old as that."""
        wait_until(lambda: self.answered(device) == "admitted", "it is admitted", pause=0.2)


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    clocks = []
    for name in ("service", "broker"):
        (tmp_path / name).mkdir()
        clocks.append(FakeClock.new(tmp_path / name))
    clocks[0].enter(monkeypatch)
    service = ProvisioningService.copied(tmp_path / "fleet", {"feed_heartbeat_seconds": 0.2})
    with service:
        clocks[1].enter(monkeypatch)
        settings = {"metrics_port": 0}
        with BrokerProcess.enrolled(tmp_path / "b", service, **settings) as broker:
            for name in ("LD_PRELOAD", "FAKETIME_TIMESTAMP_FILE"):  # The test's own programs keep the true time.
                monkeypatch.delenv(name)
            yield Fleet(service, clocks[0], broker, clocks[1])


def test_what_has_expired_is_not_admitted_by_a_clock_that_was_set_back(fleet: Fleet) -> None:
    """Neither after a full handshake nor after a resumed one, nor does it get the session back that is kept."""
    (brief,) = enrol(fleet.service, "brief", lifetime_seconds=3600)
    (long,) = enrol(fleet.service, "long")
    with fleet.client(brief) as client:
        client.connect(client_id="brief", **KEPT)
        resumable = {"session": client.leave(), "context": client.context}
    fleet.both(TWO_HOURS)
    fleet.set_back()
    with fleet.client(brief, **resumable) as client:
        client.send(connect_packet(V5, client_id="brief", **KEPT))
        connack = client.expect(Connack)
    assert connack.reason_code is ReasonCode.NOT_AUTHORIZED
    assert str(connack.properties.reason_string).startswith("EXPIRED: ")
    assert fleet.answered(brief) == "EXPIRED"
    fleet.wait_until_admitted(long)


def test_a_broker_that_starts_with_a_clock_that_is_behind_hears_the_time_or_admits_nobody(fleet: Fleet) -> None:
    """By some minutes, it believes the service; by more, it cannot judge whether that is the service."""
    (brief,) = enrol(fleet.service, "brief", lifetime_seconds=3600)
    (long,) = enrol(fleet.service, "long")
    fleet.broker.stop()
    fleet.services_clock.set(timedelta(minutes=62))
    fleet.brokers_clock.set(timedelta(minutes=59))
    fleet.broker.start()
    fleet.wait_until_admitted(long)
    assert fleet.answered(brief) == "EXPIRED"
    fleet.broker.stop()
    fleet.services_clock.set(timedelta(hours=5))
    seen = len(fleet.broker.events("FEED_LOST"))
    fleet.broker.start()
    lost = wait_until(lambda: fleet.broker.events("FEED_LOST")[seen:], "the service is not believed")
    assert "the clock here says" in lost[0]["detail"]
    for device in (brief, long):
        assert fleet.answered(device) == "REVOCATION_STATUS_UNKNOWN"


def test_lists_are_used_by_a_clock_that_was_set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They were refused as not yet valid, and what they revoke was admitted for as long as the clock was behind."""
    pki, clock = Pki(), FakeClock.new(tmp_path)
    began = datetime.now(UTC) - timedelta(days=3)
    expired = pki.device("expired", not_before=began, not_after=datetime.now(UTC) - timedelta(hours=1))
    stolen, good = (pki.device(name, not_before=began) for name in ("stolen", "good"))
    clock.enter(monkeypatch)
    listed = ListedBroker(tmp_path, pki, crl(pki.issuing, age=timedelta(minutes=1), life=timedelta(days=7)))
    with listed.process:
        assert listed.answer(good) == (ReasonCode.SUCCESS, "")
        assert listed.answer(stolen) == (ReasonCode.SUCCESS, "")
        clock.set(timedelta(days=-2))
        (behind,) = wait_until(lambda: listed.process.events("CLOCK_BEHIND"), "the log says so")
        assert "by a CRL of CN=Test Issuing CA it is" in behind["detail"]
        assert listed.answer(expired) == (ReasonCode.NOT_AUTHORIZED, "EXPIRED")
        listed.revoke(stolen)
        assert listed.answer(stolen) == (ReasonCode.NOT_AUTHORIZED, "REVOKED")
        assert listed.answer(good) == (ReasonCode.SUCCESS, "")
