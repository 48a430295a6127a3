"""A key is one device's for ever, decided where certificates are recorded."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import func, select

from provisioning.authorities.issuing_policy import key_policy_of
from provisioning.ca.key_blocklist import KeyBlocklist, digest_of
from provisioning.ca.key_policy import KeyPolicy
from provisioning.config import Settings
from provisioning.enrolment.attempt import TokenCredential
from provisioning.errors import Code, ConfigurationError, Refused
from provisioning.pki.keys import PrivateKey, generate_key
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.store.tables import device_keys
from tests.support.fleet import Fleet, successor_csr
from tests.support.requests import csr_der


async def refusal(fleet: Fleet, device: str, key: PrivateKey) -> Refused:
    with pytest.raises(Refused) as caught:
        await fleet.enrol(device, csr_der(key, [device]))
    return caught.value


async def keys_held(fleet: Fleet) -> int:
    return await fleet.database.read(
        lambda connection: connection.execute(select(func.count()).select_from(device_keys)).scalar_one()
    )


async def test_another_device_is_refused_and_the_same_one_renews_with_it(fleet: Fleet) -> None:
    key = generate_key()
    certificate = await fleet.enrol("meter-17", csr_der(key, ["meter-17"]))
    error = await refusal(fleet, "meter-18", key)
    assert (error.code, "make a new key" in error.detail) == (Code.KEY_REUSED, True)
    assert "meter-17" not in error.detail  # Whose key it is, is nobody's business.
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    renewed = await fleet.reenrol(certificate, csr_der(key, ["meter-17"], [names]))
    assert renewed.public_key() == certificate.public_key()
    assert await keys_held(fleet) == 1


async def test_a_key_does_not_become_free_when_its_device_is_gone(fleet: Fleet) -> None:
    key = generate_key()
    await fleet.enrol("meter-17", csr_der(key, ["meter-17"]))
    await fleet.revocation.decommission("meter-17", by="admin")
    assert (await refusal(fleet, "meter-18", key)).code is Code.KEY_REUSED


async def test_a_compromised_key_is_refused_to_its_own_device(fleet: Fleet) -> None:
    key = generate_key()
    await fleet.enrol("meter-17", csr_der(key, ["meter-17"]))
    await fleet.revocation.revoke_device("meter-17", RevocationReason.KEY_COMPROMISE, by="admin")
    error = await refusal(fleet, "meter-17", key)
    assert (error.code, error.detail) == (
        Code.KEY_REUSED,
        "this key was reported as compromised: make a new key",
    )


async def test_a_key_that_was_published_meanwhile_renews_nothing(fleet: Fleet) -> None:
    """Whoever has it would have a certificate for a key of his own, and with it the device's name."""
    certificate = await fleet.enrol("meter-17", csr_der(generate_key(), ["meter-17"]))
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    fleet.enrolment.service._key_policy = KeyPolicy(KeyBlocklist(digest_of(key) + b"\x01"))
    with pytest.raises(Refused, match="CSR_KEY: the certificate that you present: this key was published"):
        await fleet.reenrol(certificate, successor_csr(certificate, generate_key()))
    assert await keys_held(fleet) == 1


async def test_a_refused_enrolment_claims_no_key(fleet: Fleet) -> None:
    key = generate_key()
    with pytest.raises(Refused):
        await fleet.enrolment.enrol(csr_der(key), TokenCredential("meter-17", "nonsense"))
    assert await keys_held(fleet) == 0
    await fleet.enrol("meter-18", csr_der(key, ["meter-18"]))


async def test_of_many_devices_with_one_key_exactly_one_is_certified(fleet: Fleet) -> None:
    key = generate_key()
    names = [f"meter-{number}" for number in range(10)]
    answers = await asyncio.gather(*(fleet.enrol(name, csr_der(key, [name])) for name in names), return_exceptions=True)
    assert [type(each) for each in answers].count(x509.Certificate) == 1
    assert [each.code for each in answers if isinstance(each, Refused)] == [Code.KEY_REUSED] * 9


def test_the_configured_list_of_published_keys_is_read_and_asked(tmp_path: Path) -> None:
    published = ec.generate_private_key(ec.SECP256R1()).public_key()
    file = tmp_path / "blocklist.dat"
    file.write_bytes(digest_of(published) + b"\x01")
    policy = key_policy_of(Settings(key_blocklist=file))
    assert policy.blocklist is not None
    file.write_bytes(b"")  # As whoever copies another one over it does first.
    assert published in policy.blocklist, "and the process lives"


@pytest.mark.parametrize("content", [None, b"", b"too short"], ids=["missing", "empty", "cut off"])
def test_a_list_that_cannot_be_used_stops_the_start(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "blocklist.dat"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"key_blocklist .*blocklist\.dat .*badkeys --update-bl"):
        key_policy_of(Settings(key_blocklist=file))
