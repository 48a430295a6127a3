"""The three clients of `provisioning.client` against the real service."""

from __future__ import annotations

import asyncio
import itertools
import random
import re
import socket
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography import x509

from device_sim.credentials.credential import enrol
from provisioning.client.csr import build_csr
from provisioning.client.est import EnrolmentRefused, EnrolmentUnavailable, EstClient
from provisioning.client.feed import FeedAhead
from provisioning.client.feed_reader import Current, FeedLost, RevocationEvent
from provisioning.client.operator import OperatorClient, RequestRefused, ServiceUnavailable
from provisioning.directory.files import read_certificate
from provisioning.pki.identity import Identity, InvalidIdentity, identity_of
from provisioning.pki.keys import generate_key
from provisioning.pki.ocsp import ask
from provisioning.pki.revocation import certificate_key
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from provisioning.pki.tls import CredentialPem, TlsConfigurationError
from tests.support.broker_process import BrokerProcess, wait_until
from tests.support.enrolled import enrol as enrol_here
from tests.support.feed_events import follow
from tests.support.impostor import impostor
from tests.support.provisioning import ProvisioningService

_numbers = itertools.count(1)
RANDOMNESS = random.Random(1)


@pytest.fixture
def name(worker_id: str) -> str:
    return f"client-{worker_id}-{next(_numbers)}"


def est_of(service: ProvisioningService) -> EstClient:
    return EstClient(service.https, service.bundle)


def operator_of(service: ProvisioningService) -> OperatorClient:
    return OperatorClient(service.https, service.bundle, service.operator)


async def test_a_device_enrols_and_renews_with_a_new_key(service: ProvisioningService, name: str) -> None:
    async with operator_of(service) as operator, est_of(service) as est:
        (token,) = await operator.create_tokens(device=name, group="north")
        held = await enrol(est, name, token.token, RANDOMNESS)
        authorities = await est.ca_certificates()
    assert (held.identity.role, held.identity.group, held.identity.name) == (Role.DEVICE, "north", name)
    first = x509.load_pem_x509_certificate(held.certificate_pem)
    assert any(first.issuer == authority.subject for authority in authorities)
    key = generate_key()
    async with EstClient(service.https, service.bundle, held.pem) as est:
        second = await est.reenrol(build_csr(key, name, like=first))
    assert identity_of(second) == held.identity
    assert second.public_key() == key.public_key()
    assert second.serial_number != first.serial_number


async def test_a_group_is_named_by_the_label(service: ProvisioningService, name: str) -> None:
    async with operator_of(service) as operator, est_of(service) as est:
        (token,) = await operator.create_tokens(group="south", count=1)
        certificate = await est.enrol(build_csr(generate_key(), name), user=name, token=token.token, label="south")
    assert identity_of(certificate).group == "south"


async def test_a_refusal_has_its_code_and_a_remedy(service: ProvisioningService, name: str) -> None:
    async with operator_of(service) as operator, est_of(service) as est:
        (token,) = await operator.create_tokens(device=name)
        await enrol(est, name, token.token, RANDOMNESS)
        with pytest.raises(EnrolmentRefused) as refused:
            await enrol(est, name, token.token, RANDOMNESS)
    assert refused.value.code == "TOKEN_USED"
    assert refused.value.status in (401, 403)
    assert "ask for a new one" in refused.value.detail


async def test_many_devices_enrol_through_one_pool(service: ProvisioningService, name: str) -> None:
    names = [f"{name}-{number}" for number in range(30)]
    async with operator_of(service) as operator, est_of(service) as est:
        tokens = await operator.create_tokens(devices=names, group="north")
        held = await asyncio.gather(*(enrol(est, token.device or "", token.token, RANDOMNESS) for token in tokens))
    assert sorted(each.identity.name for each in held) == sorted(names)


async def test_a_token_can_shorten_the_life_of_its_certificate(service: ProvisioningService, name: str) -> None:
    async with operator_of(service) as operator, est_of(service) as est:
        (short,) = await operator.create_tokens(device=name, lifetime_seconds=90)
        (long,) = await operator.create_tokens(device=f"{name}-long", lifetime_seconds=800 * 24 * 3600)
        held = await enrol(est, name, short.token, RANDOMNESS)
        unchanged = await enrol(est, f"{name}-long", long.token, RANDOMNESS)
    assert timedelta(seconds=60) < held.not_after - datetime.now(UTC) <= timedelta(seconds=90)
    assert unchanged.not_after - datetime.now(UTC) <= timedelta(days=30)


@pytest.mark.parametrize("seconds", [0, -1, 10**12])
async def test_a_life_that_is_none_is_refused(service: ProvisioningService, name: str, seconds: int) -> None:
    async with operator_of(service) as operator:
        with pytest.raises(RequestRefused, match="lifetime_seconds"):
            await operator.create_tokens(device=name, lifetime_seconds=seconds)


async def test_an_operator_sees_what_is_enrolled_and_revokes_it(service: ProvisioningService, name: str) -> None:
    async with operator_of(service) as operator, est_of(service) as est:
        (token,) = await operator.create_tokens(device=name, group="east")
        held = await enrol(est, name, token.token, RANDOMNESS)
        device = await operator.device(name)
        assert (device.state, device.group, device.certificates) == ("active", "east", 1)
        assert [each.name async for each in operator.devices(group="east")].count(name) == 1
        (certificate,) = [each async for each in operator.certificates(device=name)]
        assert int(certificate.serial, 16) == held.serial
        details = await operator.certificate(certificate.serial)
        assert details.model_dump(exclude={"pem", "chain"}) == certificate.model_dump()
        assert x509.load_pem_x509_certificate(details.pem.encode()).serial_number == held.serial
        assert (await operator.status())["devices"]
        (revoked,) = await operator.revoke(device=name, reason=RevocationReason.KEY_COMPROMISE)
        assert (revoked.serial, revoked.reason) == (certificate.serial, RevocationReason.KEY_COMPROMISE)
        assert [revoked] == await operator.revoke(serial=revoked.serial), "the original facts stand"
        assert (await operator.certificate(certificate.serial)).state == "revoked"


async def test_the_operators_errors_have_their_code(service: ProvisioningService, name: str) -> None:
    async with operator_of(service) as operator:
        with pytest.raises(RequestRefused, match="DEVICE_UNKNOWN"):
            await operator.device(name)
        with pytest.raises(RequestRefused, match="UNKNOWN"):
            await operator.revoke(serial="abcdef")
        (token,) = await operator.create_tokens(device=name)
        assert token.token not in repr(token) + str(token)
        async with est_of(service) as est:
            held = await enrol(est, name, token.token, RANDOMNESS)
    async with OperatorClient(service.https, service.bundle, held.pem) as intruder:
        with pytest.raises(RequestRefused) as refused:
            await intruder.status()
    assert refused.value.status == 403


async def test_the_feed_tells_what_was_and_then_what_happens(service: ProvisioningService, name: str) -> None:
    async with operator_of(service) as operator, est_of(service) as est:
        held = {}
        for suffix in ("before", "after"):
            (token,) = await operator.create_tokens(device=f"{name}-{suffix}")
            held[suffix] = await enrol(est, f"{name}-{suffix}", token.token, RANDOMNESS)
        (past,) = await operator.revoke(device=f"{name}-before")
        feed = follow(service.https, service.bundle, service.operator, past.sequence - 1, heartbeat=1)
        async with asyncio.timeout(60), aclosing(feed):
            first = await anext(feed)
            assert isinstance(first, RevocationEvent)
            assert (first.sequence, first.device) == (past.sequence, f"{name}-before")
            assert isinstance(await anext(feed), Current)
            (present,) = await operator.revoke(device=f"{name}-after", reason=RevocationReason.SUPERSEDED)
            while not isinstance(event := await anext(feed), RevocationEvent):
                pass
            assert (event.sequence, event.device) == (present.sequence, f"{name}-after")
            certificate = x509.load_pem_x509_certificate(held["after"].certificate_pem)
            assert event.revocation.key == certificate_key(certificate)
            assert event.revocation.reason is RevocationReason.SUPERSEDED
            heartbeats = [await anext(feed) for _ in range(2)]
            assert heartbeats == [Current(present.sequence)] * 2


async def test_a_follower_that_knows_more_than_the_service_must_start_again(service: ProvisioningService) -> None:
    with pytest.raises(FeedAhead, match="start again from 0"):
        await anext(follow(service.https, service.bundle, service.operator, 10**9))


async def test_the_feed_is_not_for_devices(service: ProvisioningService, name: str) -> None:
    async with operator_of(service) as operator, est_of(service) as est:
        (token,) = await operator.create_tokens(device=name)
        held = await enrol(est, name, token.token, RANDOMNESS)
    with pytest.raises(FeedLost, match="403"):
        await anext(follow(service.https, service.bundle, held.pem, 0))


async def test_a_service_that_stops_ends_the_feed(own_service: ProvisioningService) -> None:
    feed = follow(own_service.https, own_service.bundle, own_service.operator, 0)
    async with asyncio.timeout(60), aclosing(feed):
        assert await anext(feed) == Current(0)
        stopping = asyncio.create_task(asyncio.to_thread(own_service.stop))
        with pytest.raises(FeedLost, match="ended the revocation feed"):
            [event async for event in feed]
        assert await stopping == 0


async def test_nobody_listens(service: ProvisioningService) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        nowhere = f"https://127.0.0.1:{listener.getsockname()[1]}"
    async with EstClient(nowhere, service.bundle) as est:
        with pytest.raises(EnrolmentUnavailable, match="does not answer"):
            await est.ca_certificates()
    async with OperatorClient(nowhere, service.bundle, service.operator) as operator:
        with pytest.raises(ServiceUnavailable, match="does not answer"):
            await operator.status()
    with pytest.raises(FeedLost, match="does not answer"):
        await anext(follow(nowhere, service.bundle, service.operator, 0))


async def test_a_silent_service_ends_the_feed(service: ProvisioningService) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(FeedLost):
            async with asyncio.timeout(60):
                await anext(follow(url, service.bundle, service.operator, 0, heartbeat=0.1))


async def test_another_service_is_not_trusted(service: ProvisioningService, tmp_path: Path) -> None:
    other = await asyncio.to_thread(ProvisioningService.founded, tmp_path / "other")
    async with EstClient(service.https, other.bundle) as est:
        with pytest.raises(
            EnrolmentUnavailable, match="is not the provisioning service that the trust anchors vouch for"
        ):
            await est.ca_certificates()


async def test_a_broker_of_the_same_name_is_not_taken_for_the_service(
    service: ProvisioningService, name: str, tmp_path: Path
) -> None:
    """Its certificate has the service's host name, as on any machine where both are at `localhost`."""
    (broker,) = await asyncio.to_thread(enrol_here, service, name, role="broker", dns_names=["localhost"])
    async with impostor(broker.write(tmp_path), service.bundle) as (url, heard):
        refused = f"is not the provisioning service .*its certificate is that of .*/broker/{name}"
        with pytest.raises(FeedLost, match=refused):
            await anext(follow(url, service.bundle, broker.credential, 0))
        async with EstClient(url, service.bundle) as est:
            with pytest.raises(EnrolmentUnavailable, match=refused):
                await est.enrol(build_csr(generate_key(), name), user=name, token="fgt_" + "A" * 43)
        async with OperatorClient(url, service.bundle, service.operator) as operator:
            with pytest.raises(ServiceUnavailable, match=refused):
                await operator.status()
    assert not any(heard), "no token is told, and no other word"


def test_anchors_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(TlsConfigurationError, match=r"nowhere\.pem cannot be read"):
        EstClient("https://localhost", tmp_path / "nowhere.pem")


def test_a_renewal_is_for_its_own_name() -> None:
    identity = Identity("fleet.internal", Role.DEVICE, "meter-1", "north")
    assert build_csr(generate_key(), identity).subject == build_csr(generate_key(), "meter-1").subject
    with pytest.raises(InvalidIdentity, match="name 'meter 1'"):
        build_csr(generate_key(), "meter 1")


async def test_whoever_has_copied_the_service_s_key_is_shown_no_token_and_does_not_answer_operators(
    tmp_path: Path,
) -> None:
    """Neither by a device nor by a broker that has never run: who shows a token learns what the service was told.

    An operator was told that a device is revoked, by whoever wanted it not to be.
    """
    with ProvisioningService.copied(tmp_path / "fleet") as service:
        copied = CredentialPem(b"".join((service.dir / f"server.{kind}").read_bytes() for kind in ("key", "crt")))
        own, issuer = x509.load_pem_x509_certificates(copied.pem)[:2]
        broker = BrokerProcess.enrolled(tmp_path / "b", service)
        token = service.token(device="meter-1")
        service.revoke(serial=f"{own.serial_number:x}", reason="keyCompromise")

        async def refused(response: bytes, why: str) -> None:
            async with impostor(copied, service.bundle, response=response) as (url, heard):
                async with EstClient(url, service.bundle) as est:
                    with pytest.raises(EnrolmentUnavailable, match=why):
                        await est.enrol(build_csr(generate_key(), "meter-1"), user="meter-1", token=token)
                async with OperatorClient(url, service.bundle, service.operator) as operator:
                    with pytest.raises(ServiceUnavailable, match=why):
                        await operator.revoke(device="meter-1")
                broker.follow(At(url))
                code, said = await asyncio.to_thread(broker.fail)
                assert code == 1
                assert re.search(rf"the broker could not enrol at {url}: .*{why}", said)
            assert not any(heard)

        await refused(b"", "it does not prove that its certificate is not revoked")
        async with httpx.AsyncClient(trust_env=False) as anybody:
            answer = await anybody.post(
                f"{service.http}/ocsp",
                content=ask(own.serial_number, issuer, nonce=False).der,
                headers={"Content-Type": "application/ocsp-request"},
            )
        await refused(answer.content, r"its certificate is revoked \(keyCompromise\)")

        def renewed() -> bool:
            return read_certificate(service.dir / "server.crt") != own

        await asyncio.to_thread(wait_until, renewed, "the service's new certificate")
        broker.follow(service)
        with broker:
            async with EstClient(service.https, service.bundle) as est:
                await est.enrol(build_csr(generate_key(), "meter-1"), user="meter-1", token=token)


@dataclass(frozen=True)
class At:
    """A service, as far as a broker is told of it."""

    https: str
