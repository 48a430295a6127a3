"""A store of yesterday is put in the place of today's: no revocation made since may be missed."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from pathlib import Path

from broker.mqtt.codes import ReasonCode
from broker.mqtt.connect import Connack
from tests.support.broker_process import BrokerProcess, wait_until
from tests.support.enrolled import Enrolled, enrol
from tests.support.provisioning import ProvisioningService
from tests.support.tls_client import TlsClient
from tests.support.wire import V5, connect_packet


def answer(broker: BrokerProcess, service: ProvisioningService, device: Enrolled) -> ReasonCode:
    with TlsClient(broker.port, service.bundle, device.credential) as client:
        client.send(connect_packet(V5, client_id=""))
        return client.expect(Connack).reason_code


def test_a_broker_hears_what_was_revoked_under_numbers_that_it_has_already(tmp_path: Path) -> None:
    with ProvisioningService.copied(tmp_path / "fleet", {"feed_heartbeat_seconds": 1}) as service:
        port = service.port
        first, second = enrol(service, "meter-1", "meter-2")
        with BrokerProcess.enrolled(tmp_path / "broker", service) as broker:
            with (
                contextlib.closing(sqlite3.connect(service.dir / "fleet.db")) as live,
                contextlib.closing(sqlite3.connect(tmp_path / "copy.db")) as copy,
            ):
                live.backup(copy)
            assert [each["sequence"] for each in service.revoke(device="meter-1")] == [1]
            wait_until(lambda: broker.events("REVOKED", device="meter-1"), "the broker hears of it")
            service.stop()
            for suffix in ("-wal", "-shm"):
                (service.dir / f"fleet.db{suffix}").unlink(missing_ok=True)
            shutil.copy(tmp_path / "copy.db", service.dir / "fleet.db")
            # The operator is quicker than the broker, which has another address for the service.
            service.start()
            assert [each["sequence"] for each in service.revoke(device="meter-2")] == [1]
            service.stop()
            service.start(port=port)
            wait_until(lambda: broker.events("FEED_AHEAD"), "the broker notices that it has another history")
            wait_until(lambda: len(broker.events("FEED_CURRENT")) == 2, "the broker has read the feed again")
            assert answer(broker, service, second) is ReasonCode.NOT_AUTHORIZED
            assert answer(broker, service, first) is ReasonCode.NOT_AUTHORIZED, "what was revoked stays revoked"
