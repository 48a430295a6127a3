"""The clock of a running broker is set, by libfaketime: who is connected ends with his certificate, no later."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from broker.mqtt.codes import ReasonCode
from tests.support.broker_process import BrokerProcess, wait_until
from tests.support.faketime import FakeClock
from tests.support.pki import Pki
from tests.support.tls_client import TlsClient


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
        BrokerProcess.with_files(tmp_path / "b", pki).afresh() as broker,
        TlsClient(broker.port, pki.anchors, held["short"].credential) as short,
        TlsClient(broker.port, pki.anchors, held["long"].credential) as long,
    ):
        short.connect(client_id="short")
        long.connect(client_id="long")
        clock.set(timedelta(hours=2))
        farewell = short.farewell()
        assert farewell.reason_code is ReasonCode.NOT_AUTHORIZED
        assert str(farewell.properties.reason_string).startswith("EXPIRED: ")
        (said,) = wait_until(lambda: broker.events("CLOCK_SET"), "the broker has noticed")
        assert abs(said["seconds"] - 7200) <= 1
        long.check_alive()
