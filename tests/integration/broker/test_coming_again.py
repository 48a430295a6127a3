"""A device that the broker has let in before, with full handshakes: what has changed since is found all the same."""

from __future__ import annotations

import signal
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from broker.mqtt.connect import Connack
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role
from provisioning.pki.tls import Credential, client_context
from tests.support.broker_process import BrokerProcess, wait_until
from tests.support.enrolled import enrol
from tests.support.pki import DOMAIN, Held, Pki
from tests.support.provisioning import ProvisioningService
from tests.support.tls_client import Ended, TlsClient, attempt, refused_with
from tests.support.wire import V5, connect_packet

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


def answered(
    broker: BrokerProcess, anchors: Path | str, name: str, credential: Credential, version: ssl.TLSVersion
) -> str:
    """Connect with a full handshake; return the code of the refusal in CONNACK, or that there is none."""
    context = client_context(anchors, credential, allow_tls12=True)
    context.maximum_version = version
    with TlsClient(broker.port, "", context=context) as client:
        assert not client.socket.session_reused
        client.send(connect_packet(V5, client_id=name))
        connack = client.expect(Connack)
    return (connack.properties.reason_string or "admitted").partition(":")[0]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("change", "code"),
    [(ProvisioningService.revoke, "REVOKED"), (ProvisioningService.suspend, "SUSPENDED")],
    ids=["revoked", "suspended"],
)
def test_who_is_revoked_meanwhile_is_refused(
    service: ProvisioningService,
    fleet_broker: BrokerProcess,
    change: Callable[..., object],
    code: str,
    version: ssl.TLSVersion,
) -> None:
    name = f"again-{code}-{version.name[-1]}".lower()
    (device,) = enrol(service, name)

    def comes() -> str:
        return answered(fleet_broker, service.bundle, name, device.credential, version)

    assert [comes(), comes()] == ["admitted", "admitted"]
    change(service, serial=device.serial, **({"reason": "keyCompromise"} if code == "REVOKED" else {}))
    wait_until(lambda: comes() == code, "the broker knows of it", pause=0.1)
    assert comes() == code
    if code == "SUSPENDED":
        service.resume(serial=device.serial)
        wait_until(lambda: comes() == "admitted", "the broker knows of it", pause=0.1)


@pytest.mark.parametrize("whose", ["certificate", "CA"])
def test_who_has_expired_meanwhile_is_refused_by_tls(
    broker: BrokerProcess, pki: Pki, anchors: Path, whose: str
) -> None:
    ends = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=10)
    name = f"brief-{whose.lower()}"

    def brief(end: datetime) -> Held:
        issuer = pki.authority("A CA that ends", pki.root, not_after=end) if whose == "CA" else pki.issuing
        identity = Identity(DOMAIN, Role.DEVICE, name, "meters")
        return pki.certify(identity, issuer=issuer, not_after=end if whose == "certificate" else None)

    held, gone = brief(ends), brief(ends - timedelta(seconds=60))
    for _ in range(2):
        assert answered(broker, anchors, name, held.credential, ssl.TLSVersion.TLSv1_3) == "admitted"
    wait_until(lambda: time.time() > ends.timestamp() + 1, "its end")
    before = len(broker.events("EXPIRED"))
    alerts = [attempt(broker.port, anchors, each.credential) for each in (held, gone)]
    assert alerts == ["SSLV3_ALERT_CERTIFICATE_EXPIRED"] * 2
    told = wait_until(
        lambda: broker.events("EXPIRED")[before:][1:2] and broker.events("EXPIRED")[before:], "it is told"
    )
    assert told[0]["detail"] == told[1]["detail"] == "certificate has expired"


def test_who_s_ca_is_withdrawn_meanwhile_is_refused_by_tls(tmp_path: Path, pki: Pki) -> None:
    with BrokerProcess.with_files(tmp_path, pki) as broker:
        other = Pki()
        trusted = Path(broker.arguments[broker.arguments.index("--cafile") + 1])
        trusted.write_text(pki.anchors + other.anchors)
        broker.send_signal(signal.SIGHUP)
        held = other.device("again")

        def comes() -> str:
            try:
                return answered(broker, pki.anchors, "again", held.credential, ssl.TLSVersion.TLSv1_3)
            except Ended as end:
                return refused_with(end.error)

        wait_until(lambda: comes() == "admitted", "its CA is trusted", pause=0.1)
        assert comes() == "admitted"
        trusted.write_text(pki.anchors)
        broker.send_signal(signal.SIGHUP)
        wait_until(lambda: comes() != "admitted", "its CA is trusted no more", pause=0.1)
        assert comes() == attempt(broker.port, pki.anchors, Pki().device("x").credential) == "TLSV1_ALERT_UNKNOWN_CA"
        assert broker.events("UNTRUSTED_ISSUER")
