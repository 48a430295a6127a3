"""A claim's key is no device's, whatever admits it: everybody in the batch could be that device."""

from __future__ import annotations

from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from sqlalchemy import delete

from provisioning.doctor.doctor_claims import claim_findings
from provisioning.doctor.doctor_finding import Finding
from provisioning.enrolment.approvals import ApprovalService
from provisioning.enrolment.attempt import TokenCredential
from provisioning.enrolment.claims import ClaimOrder, ClaimService
from provisioning.enrolment.tokens import TokenOrder
from provisioning.errors import Code, Refused
from provisioning.pki.keys import generate_key, spki_fingerprint
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from provisioning.store import approvals
from provisioning.store.approvals import ApprovalRequest
from provisioning.store.tables import device_keys
from tests.support.fleet import Fleet, successor_csr
from tests.support.requests import csr_der
from tests.support.ways import HOUR, claim, enrol, group, is_good, nothing, refusal

NAME = "meter-1"


async def shared_key(fleet: Fleet) -> ec.EllipticCurvePrivateKey:
    order = ClaimOrder("batch", "line", 2, timedelta(days=30))
    issued = await ClaimService(fleet.database, fleet.clock, nothing).create(order, by="admin")
    key = load_pem_private_key(issued.key_pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


async def bound(fleet: Fleet) -> TokenCredential:
    return TokenCredential(NAME, await fleet.token(NAME, "line"))


async def test_a_token_buys_no_certificate_for_it_and_is_not_spent(fleet: Fleet) -> None:
    await group(fleet, "token")
    key, token = await shared_key(fleet), await bound(fleet)
    with pytest.raises(Refused, match="KEY_REUSED: this is a claim's key, which the whole batch holds: make a new key"):
        await enrol(fleet, NAME, key=key, token=token)
    assert await is_good(fleet, await enrol(fleet, NAME, key=generate_key(), token=token))


async def test_nor_does_one_for_a_broker(fleet: Fleet) -> None:
    key = await shared_key(fleet)
    (token,) = await fleet.token_service.create(TokenOrder(["mqtt-1"], None, Role.BROKER), by="admin")
    with pytest.raises(Refused, match="KEY_REUSED"):
        await fleet.enrolment.enrol(csr_der(key, names=["mqtt-1"]), TokenCredential("mqtt-1", token.token))


async def test_nor_does_a_renewal_take_it_and_the_device_keeps_what_it_has(fleet: Fleet) -> None:
    await group(fleet, "token")
    key, own = await shared_key(fleet), generate_key()
    certificate = await enrol(fleet, NAME, key=own, token=await bound(fleet))
    with pytest.raises(Refused, match="KEY_REUSED"):
        await fleet.reenrol(certificate, successor_csr(certificate, key))
    assert await is_good(fleet, await fleet.reenrol(certificate, successor_csr(certificate, own)))


async def test_nor_does_another_claim_or_its_trial(fleet: Fleet) -> None:
    await group(fleet, "claim")
    key, other, own = await shared_key(fleet), await claim(fleet, name="other"), generate_key()
    assert await refusal(fleet, NAME, key=key, certificate=other) is Code.KEY_REUSED
    trial = await enrol(fleet, NAME, key=own, certificate=other)
    with pytest.raises(Refused, match="KEY_REUSED"):
        await fleet.reenrol(trial, successor_csr(trial, key))
    assert await is_good(fleet, await fleet.reenrol(trial, successor_csr(trial, own)))


async def test_nor_does_an_operator_s_approval(fleet: Fleet) -> None:
    await group(fleet, "token+approval")
    key, token = await shared_key(fleet), await bound(fleet)
    assert await refusal(fleet, NAME, key=key, token=token) is Code.KEY_REUSED, "nobody is asked"
    asked = ApprovalRequest("line", NAME, spki_fingerprint(key.public_key()), "token 1", None)
    earlier = await fleet.database.write(lambda connection: approvals.put(connection, asked, fleet.clock()))
    with pytest.raises(
        Refused, match=rf"KEY_REUSED: request {earlier}, .* \(this is a claim's key, .* deny {earlier}$"
    ):
        await ApprovalService(fleet.database, fleet.clock).decide(earlier, approve=True, by="boss")
    assert await refusal(fleet, NAME, key=key, token=token) is Code.KEY_REUSED


async def test_nor_once_the_claim_has_ended(fleet: Fleet) -> None:
    """Those who had it still have its key."""
    await group(fleet, "token")
    key = await shared_key(fleet)
    await ClaimService(fleet.database, fleet.clock, nothing).end("batch", by="admin")
    fleet.clock.advance(9000 * HOUR)
    assert await refusal(fleet, NAME, key=key, token=await bound(fleet)) is Code.KEY_REUSED


async def test_a_claim_that_could_not_be_made_keeps_no_key(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    key = generate_key()
    await claim(fleet)
    with monkeypatch.context() as patched:
        patched.setattr("provisioning.enrolment.claims.generate_key", lambda: key)
        with pytest.raises(Refused, match="NAME_EXISTS"):
            await claim(fleet)
    certificate: x509.Certificate = await fleet.enrol(NAME, csr_der(key, names=[NAME]))
    assert await is_good(fleet, certificate)


async def test_a_device_that_an_earlier_version_has_certified_for_it_is_named_with_a_remedy_that_helps(
    fleet: Fleet,
) -> None:
    await group(fleet, "token")
    key = await shared_key(fleet)
    await claim(fleet, name="other")

    async def found() -> list[Finding]:
        return await fleet.database.read(lambda connection: list(claim_findings(connection, fleet.clock())))

    assert await found() == []
    await fleet.database.write(lambda connection: connection.execute(delete(device_keys)))  # As it was.
    await enrol(fleet, NAME, key=key, token=await bound(fleet))
    (finding,) = await found()
    assert (finding.verdict, finding.detail) == (
        "warning", f"{NAME} has the key of claim batch, which the whole batch holds: each of them can be {NAME}"
    )  # fmt: skip
    assert f"fleet-provisioning revoke --device {NAME} --reason keyCompromise" in finding.remedy
    await fleet.revocation.revoke_device(NAME, RevocationReason.KEY_COMPROMISE, by="admin")
    assert await found() == []
    token = await bound(fleet)
    assert await refusal(fleet, NAME, key=key, token=token) is Code.KEY_REUSED
    await enrol(fleet, NAME, key=generate_key(), token=token)
