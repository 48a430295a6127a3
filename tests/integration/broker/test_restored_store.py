"""A store of yesterday takes today's place: no revocation made since is missed, and a certificate can be revoked."""

from __future__ import annotations

import contextlib
import re
import shutil
import sqlite3
from pathlib import Path

from cryptography import x509

from broker.mqtt.codes import ReasonCode
from broker.mqtt.connect import Connack
from provisioning.pki.crl import distribution_points
from tests.support.broker_process import BrokerProcess, wait_until
from tests.support.curl import Curl
from tests.support.enrolled import Enrolled, enrol
from tests.support.openssl import openssl
from tests.support.provisioning import ProvisioningService
from tests.support.tls_client import TlsClient
from tests.support.wire import V5, connect_packet

PUBLIC = "http://ca.example.org"
SETTINGS = {"feed_heartbeat_seconds": 1, "crl_debounce_seconds": 0.05, "crl_shards": 2, "public_http_url": PUBLIC}


def answer(broker: BrokerProcess, service: ProvisioningService, device: Enrolled) -> ReasonCode:
    with TlsClient(broker.port, service.bundle, device.credential) as client:
        client.send(connect_packet(V5, client_id=""))
        return client.expect(Connack).reason_code


def said_by_ocsp(service: ProvisioningService, certificate: Path) -> str:
    own, above = service.dir / "issuing-ca.crt", service.bundle
    asked = ("-issuer", own, "-cert", certificate, "-url", f"{service.http}/ocsp", "-CAfile", above)
    return openssl("ocsp", *asked, check=False).decode()


def listed_where_it_says(service: ProvisioningService, certificate: x509.Certificate) -> bool:
    (path,) = {each.removeprefix(PUBLIC) for each in distribution_points(certificate)}
    assert re.fullmatch(r"/crl/issuing-ca-[0-9]+\.crl", path)
    crl = x509.load_der_x509_crl(Curl(service.http).run(path).body)
    return crl.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None


def test_a_broker_hears_what_was_revoked_under_numbers_that_it_has_already(tmp_path: Path) -> None:
    with ProvisioningService.copied(tmp_path / "fleet", SETTINGS) as service:
        port = service.port
        first, second = enrol(service, "meter-1", "meter-2")
        with BrokerProcess.enrolled(tmp_path / "broker", service) as broker:
            with (
                contextlib.closing(sqlite3.connect(service.dir / "fleet.db")) as live,
                contextlib.closing(sqlite3.connect(tmp_path / "copy.db")) as copy,
            ):
                live.backup(copy)
            (lost,) = enrol(service, "meter-3")
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

            assert answer(broker, service, lost) is ReasonCode.SUCCESS, "its CA has signed it"
            files = lost.write(tmp_path)
            assert f"{files.certificate}: unknown" in said_by_ocsp(service, files.certificate)
            refused = service.post("/v1/revocations", serial=lost.serial).json()
            assert (refused["code"], "revoke --certificate FILE" in refused["detail"]) == ("SERIAL_UNKNOWN", True)
            where = ("--dir", str(service.dir), "--url", service.https)
            file = str(files.certificate)
            done = service.command("revoke", "--certificate", file, "--reason", "keyCompromise", *where)
            assert (done.returncode, f"{lost.serial}  meter-3  keyCompromise" in done.stdout) == (0, True), done.stderr
            wait_until(lambda: broker.events("REVOKED", device="meter-3"), "the broker hears of it")
            assert answer(broker, service, lost) is ReasonCode.NOT_AUTHORIZED
            assert "Reason: keyCompromise" in said_by_ocsp(service, files.certificate)
            wait_until(lambda: listed_where_it_says(service, lost.certificate), "it is on its list")
