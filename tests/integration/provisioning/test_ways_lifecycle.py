"""A batch that enrols by its claim while the process dies: nothing is lost, nothing is doubled."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from provisioning.client.csr import build_csr
from provisioning.client.est import EnrolmentUnavailable, EstClient
from provisioning.pki.keys import generate_key
from provisioning.pki.tls import CredentialFiles
from tests.support.broker_process import wait_until
from tests.support.provisioning import ProvisioningService

ON_BOTH_STORES = True

DEVICES = 200


async def enrol_all(
    service: ProvisioningService, claim: CredentialFiles, keys: dict[str, ec.EllipticCurvePrivateKey], kill_after: int
) -> dict[str, x509.Certificate]:
    """Enrol every device, and kill the service after so many answers; return the answers that arrived."""
    received: dict[str, x509.Certificate] = {}
    enough = asyncio.Event()

    async def some(client: EstClient, names: list[str]) -> None:
        for name in names:
            with contextlib.suppress(EnrolmentUnavailable):
                received[name] = await client.enrol(build_csr(keys[name], name))
            if len(received) >= kill_after:
                enough.set()

    names = list(keys)
    async with EstClient(service.https, service.bundle, claim) as client:
        burst = asyncio.gather(*(some(client, names[start::16]) for start in range(16)))
        if kill_after < len(names):
            await enough.wait()
            os.kill(service.pid, signal.SIGKILL)
        await burst
    return received


async def test_kill_9_while_a_batch_enrols_by_claim(own_service: ProvisioningService, tmp_path: Path) -> None:
    service = own_service
    assert service.post("/v1/groups", name="line", ways=["claim"]).status_code == 201
    pem = tmp_path / "claim.pem"
    issued = service.post("/v1/claims", name="batch", group="line", maximum_devices=DEVICES, life_seconds=3600).json()
    pem.write_text(issued["private_key"] + issued["certificate"])
    claim = CredentialFiles(pem, pem)
    keys = {f"meter-{number}": generate_key() for number in range(DEVICES)}
    before = await enrol_all(service, claim, keys, kill_after=40)
    assert 40 <= len(before) < DEVICES, "the burst was over before the kill"
    service.kill()
    service.start()
    # Every device asks again with the key that it has, whether it had an answer or not.
    after = await enrol_all(service, claim, keys, kill_after=DEVICES)
    assert len(after) == DEVICES
    assert {name: after[name] for name in before} == before
    devices = "SELECT count(*) FROM certificates JOIN devices ON device_id = devices.id WHERE role = 'device'"
    ((certificates,),) = service.stored(devices)
    ((trials,),) = service.stored("SELECT count(*) FROM activations")
    ((held,),) = service.stored("SELECT count(*) FROM revocations WHERE reason = 'certificateHold'")
    assert certificates == trials == held == DEVICES, "one certificate a device, on trial and on hold, each of them"
    with service.api() as api:
        assert api.get("/v1/claims/batch").json()["used"] == DEVICES


async def test_a_claim_that_tls_cannot_be_told_of_is_made_and_works_as_soon_as_it_can(
    own_service: ProvisioningService, tmp_path: Path
) -> None:
    """The service's own files cannot be read for a moment: out of descriptors, say, or put back from a backup."""
    service = own_service
    assert service.post("/v1/groups", name="line", ways=["claim"]).status_code == 201
    certificate = service.dir / "server.crt"
    certificate.rename(tmp_path / "aside")
    answer = service.post("/v1/claims", name="batch", group="line", maximum_devices=1, life_seconds=3600)
    assert answer.status_code == 201, "its key is in this answer alone"
    wait_until(lambda: service.log.count("enrolment trust not taken over") > 1, "it is tried again")
    (tmp_path / "aside").rename(certificate)
    wait_until(lambda: "enrolment trust changed" in service.log, "TLS knows the claim")
    pem = tmp_path / "claim.pem"
    pem.write_text(answer.json()["private_key"] + answer.json()["certificate"])
    async with EstClient(service.https, service.bundle, CredentialFiles(pem, pem)) as client:
        await client.enrol(build_csr(generate_key(), "meter-1"))
