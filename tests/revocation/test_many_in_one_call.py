"""Five hundred live sessions that one call suspends: each is closed and told why, and let in again afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

from cryptography.hazmat.primitives.serialization import Encoding

from broker.mqtt.codes import ReasonCode
from provisioning.client.csr import build_csr
from provisioning.client.est import EstClient
from provisioning.pki.keys import generate_key, key_to_pem
from provisioning.pki.tls import CredentialPem
from tests.support.broker_process import BrokerProcess, wait_until
from tests.support.enrolled import enrol
from tests.support.provisioning import ProvisioningService
from tests.support.tls_client import TlsClient

MANY = 500
_AT_A_TIME = 8


async def enrol_all(service: ProvisioningService, names: list[str]) -> list[CredentialPem]:
    """Enrol *names*, several at a time."""
    tokens = service.tokens(devices=names, group="crowd")
    waiting = list(zip(names, tokens, strict=True))
    found: dict[str, CredentialPem] = {}

    async def some() -> None:
        async with EstClient(service.https, service.bundle) as client:
            chain = b"".join(ca.public_bytes(Encoding.PEM) for ca in await client.ca_certificates())
            while waiting:
                name, token = waiting.pop()
                key = generate_key()
                certificate = await client.enrol(build_csr(key, name), user=name, token=token)
                found[name] = CredentialPem(key_to_pem(key) + certificate.public_bytes(Encoding.PEM) + chain)

    await asyncio.gather(*(some() for _ in range(_AT_A_TIME)))
    return [found[name] for name in names]


@contextmanager
def connected(
    broker: BrokerProcess, service: ProvisioningService, names: list[str], credentials: list[CredentialPem]
) -> Iterator[list[TlsClient]]:
    """Connect all of them, for a block."""

    def connect(name: str, credential: CredentialPem) -> TlsClient:
        client = stack.enter_context(TlsClient(broker.port, service.bundle, credential))
        client.connect(client_id=name)
        return client

    with ExitStack() as stack, ThreadPoolExecutor(_AT_A_TIME) as threads:
        yield list(threads.map(connect, names, credentials))


def test_each_session_of_a_call_is_closed_with_its_reason_and_let_in_again_after_another(
    fleet_broker: BrokerProcess, service: ProvisioningService
) -> None:
    names = [f"crowd-{number:03}" for number in range(MANY)]
    credentials = asyncio.run(enrol_all(service, names))
    (other,) = enrol(service, "crowd-bystander")
    with TlsClient(fleet_broker.port, service.bundle, other.credential) as bystander:
        bystander.connect(client_id=other.name)
        with connected(fleet_broker, service, names, credentials) as clients:
            suspended = service.post("/v1/suspensions", devices=names)
            assert (suspended.status_code, len(suspended.json()["suspended"])) == (201, MANY)
            for client in clients:
                farewell = client.farewell()
                assert farewell.reason_code is ReasonCode.ADMINISTRATIVE_ACTION
                assert farewell.properties.reason_string == "SUSPENDED: the certificate is suspended (certificateHold)"
        bystander.check_alive()
        resumed = service.post("/v1/resumptions", devices=names)
        assert (resumed.status_code, len(resumed.json()["resumed"])) == (201, MANY)
        last = resumed.json()["resumed"][-1]["serial"]
        wait_until(lambda: fleet_broker.events("RELEASED", serial=last), "the broker learns of all")
        for name, credential in zip(names[::100], credentials[::100], strict=True):
            with TlsClient(fleet_broker.port, service.bundle, credential) as client:
                client.connect(client_id=name)
        bystander.check_alive()
