"""The database's primary dies, and a standby takes over that lacks the last commits: nothing later may be missed."""

from __future__ import annotations

import signal
from http import HTTPStatus
from pathlib import Path

from cryptography import x509
from cryptography.x509 import ocsp

from broker.mqtt.codes import ReasonCode
from broker.mqtt.connect import Connack
from tests.support.broker_process import BrokerProcess, wait_until
from tests.support.curl import Curl
from tests.support.enrolled import Enrolled, enrol
from tests.support.ocsp import SHA256, request_der
from tests.support.postgresql import PostgresqlServer
from tests.support.provisioning import ProvisioningService
from tests.support.tls_client import TlsClient
from tests.support.wire import V5, connect_packet

SETTINGS = {"feed_heartbeat_seconds": 1, "crl_debounce_seconds": 0.05}


def answer(broker: BrokerProcess, service: ProvisioningService, device: Enrolled) -> ReasonCode:
    with TlsClient(broker.port, service.bundle, device.credential) as client:
        client.send(connect_packet(V5, client_id=""))
        return client.expect(Connack).reason_code


def listed(service: ProvisioningService, device: Enrolled, name: str = "issuing-ca") -> bool:
    read = x509.load_der_x509_crl(Curl(service.http).run(f"/crl/{name}.crl").body)
    return read.get_revoked_certificate_by_serial_number(device.certificate.serial_number) is not None


def status_of(service: ProvisioningService, device: Enrolled) -> ocsp.OCSPCertStatus:
    issuer = x509.load_pem_x509_certificate((service.dir / "issuing-ca.crt").read_bytes())
    asked = request_der(device.certificate, issuer, SHA256)
    answer = Curl(service.http).run("/ocsp", "--header", "Content-Type: application/ocsp-request", data=asked)
    return ocsp.load_der_ocsp_response(answer.body).certificate_status


def works(service: ProvisioningService) -> bool:
    return service.post("/v1/tokens", device="meter-9").status_code == HTTPStatus.CREATED


def test_a_standby_that_lacks_the_last_commits_takes_over(tmp_path: Path) -> None:
    with PostgresqlServer() as primary:
        name = primary.new_database(template="template0").rpartition("/")[2]
        with PostgresqlServer(standby_of=primary) as standby:
            url = f"postgresql+psycopg://fleet@/{name}?host=127.0.0.1:{standby.port}&host=127.0.0.1:{primary.port}"
            settings = SETTINGS | {"database_url": url}
            with ProvisioningService.founded(tmp_path / "fleet", settings) as service:
                first, second, third, held = enrol(service, "meter-1", "meter-2", "meter-3", "meter-4")
                with BrokerProcess.enrolled(tmp_path / "broker", service) as broker:
                    service.revoke(device="meter-1")
                    service.suspend(device="meter-4")
                    service.resume(device="meter-4")
                    wait_until(lambda: listed(service, first), "the list has the first")
                    standby.catch_up(primary)
                    standby.stop()
                    service.suspend(device="meter-4")
                    assert [each["sequence"] for each in service.revoke(device="meter-2")] == [5]
                    wait_until(lambda: broker.events("REVOKED", device="meter-2"), "the broker hears of it")
                    wait_until(lambda: listed(service, second), "and the list has it")
                    assert status_of(service, third) is ocsp.OCSPCertStatus.GOOD
                    head = service.audit_head()
                    primary.stop(signal.SIGKILL)
                    standby.start()
                    standby.promote()
                    wait_until(lambda: works(service), "the service has found the other server")
                    enrol(service, "meter-5")
                    assert [each["sequence"] for each in service.revoke(device="meter-3")] == [4], "a number again"
                    wait_until(lambda: len(broker.events("FEED_CURRENT")) == 2, "the broker has read the feed again")
                    wait_until(
                        lambda: answer(broker, service, third) is ReasonCode.NOT_AUTHORIZED, "it hears of that, too"
                    )
                    assert answer(broker, service, second) is ReasonCode.NOT_AUTHORIZED, "what was revoked stays it"
                    assert answer(broker, service, held) is ReasonCode.BANNED, "that it was resumed was before"
                    wait_until(lambda: listed(service, third), "the list has the third")
                    assert listed(service, second), "and still that of which this process alone knows"
                    assert status_of(service, third) is ocsp.OCSPCertStatus.REVOKED
                    lost = [line for line in service.log.splitlines() if '"STORE_WENT_BACK"' in line]
                    assert any(second.serial in line for line in lost), "what was lost is named"
                    assert any(f'"committed": "{head}"' in line for line in lost), "and up to where"
                    found = service.command("audit", "verify", "--head", head, "--dir", str(service.dir))
                    assert found.returncode == 1
                    service.command("audit", "verify", "--dir", str(service.dir), check=True)
