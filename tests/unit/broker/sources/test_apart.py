"""One bundle's lists and responders cannot keep another's waiting, nor take their room."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from broker.admission.bundle import TrustBundle
from broker.admission.freshness import Freshness
from broker.admission.status import RevocationStatus
from broker.metrics import Metrics
from broker.settings.config import BrokerConfig
from broker.settings.trust_settings import StatusPolicy, TrustSettings
from broker.sources.crl_intake import CrlIntake, Taken
from broker.sources.crl_urls import CrlUrls
from broker.sources.ocsp_client import OcspClient
from broker.sources.revocation_lists import RevocationLists
from broker.sources.trust_files import load_trust
from provisioning.pki.identity import Identity
from provisioning.pki.revocation import RevocationIndex
from provisioning.pki.role import Role
from tests.support.crl import crl
from tests.support.listed import replace_file
from tests.support.pki import Pki, pem_of, shared_device, shared_pki
from tests.support.responder import Responder, delegate
from tests.support.web import WebServer
from tests.support.wire import MemoryBroker

PKI = shared_pki()
ADVISORY = StatusPolicy(None)
MANY = 40
"""More than are asked, or fetched, at a time."""


@pytest.fixture
def web() -> Iterator[WebServer]:
    with WebServer() as opened:
        yield opened


@pytest.fixture
async def hanging() -> AsyncIterator[str]:
    """Return the URL of a server that takes every request and answers none."""
    server = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody give up who waits in vain: what is answered was not kept waiting, however slow the machine."""
    monkeypatch.setattr("broker.sources.ocsp_http.PATIENCE", 600.0)
    monkeypatch.setattr("broker.sources.crl_transfer.FIRST_SECONDS", 600.0)


async def test_responders_that_hang_keep_nobody_of_another_bundle_waiting(web: WebServer, hanging: str) -> None:
    """Those of many bundles took all connections that there were, one after the other."""
    held = shared_device("meter-1")
    web.pages["/ocsp"] = Responder(PKI.issuing, delegate(PKI), [held])
    (ours,) = TrustBundle("ours", [PKI.issuing.certificate]).anchors
    plant = Pki().issuing.certificate
    theirs = [issuer for number in range(7) for issuer in TrustBundle(f"plant-{number}", [plant]).anchors]
    client = OcspClient(
        RevocationStatus(RevocationIndex(), Freshness(300.0)),
        Metrics(),
        lambda *_, **__: None,
        lambda: None,
        900.0,
        lambda: 0.0,
    )
    waiting = [
        asyncio.create_task(client.ask_at([f"{hanging}/{number}"], number, issuer))
        for issuer in theirs
        for number in range(17)
    ]
    await asyncio.sleep(0)
    async with asyncio.timeout(60):
        answer = await client.ask_at([f"{web.url}/ocsp"], held.certificate.serial_number, ours)
    assert answer is not None
    assert answer.known
    assert not any(task.done() for task in waiting)
    await client.close()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_lists_that_never_come_keep_none_of_another_bundle_waiting(web: WebServer, hanging: str) -> None:
    broker = MemoryBroker()
    web.pages["/ours.crl"] = crl(PKI.issuing)
    urls = CrlUrls(CrlIntake(broker.engine, lambda: 0.0), 900.0, asyncio.get_running_loop().time)
    named = [f"{hanging}/{number}" for number in range(MANY)]
    shared = f"{web.url}/ours.crl"
    waiting = [asyncio.create_task(urls.fetch(url, "plant")) for url in urls.follow([*named, shared], "plant")]
    await asyncio.sleep(0)
    async with asyncio.timeout(60):
        for url in urls.follow([shared], "ours"):
            await urls.fetch(url, "ours")
    assert web.requests["/ours.crl"] == 1
    assert not urls.untried([shared], "ours")
    assert urls.untried([shared], "plant"), "it waits behind its own"
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    await urls.close()


async def test_what_is_fetched_again_and_again_waits_for_nobody_else(web: WebServer, hanging: str) -> None:
    web.pages["/ours.crl"] = crl(PKI.issuing)
    loop = asyncio.get_running_loop()
    urls = CrlUrls(CrlIntake(MemoryBroker().engine, lambda: 0.0), 0.1, loop.time)
    urls.configure([("plant", f"{hanging}/plant.crl"), ("ours", f"{web.url}/ours.crl")])
    running = asyncio.create_task(urls.run())
    async with asyncio.timeout(60):
        while web.requests["/ours.crl"] < 2:
            await asyncio.sleep(0.05)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert running.cancelled()


async def test_who_is_connected_is_asked_about_again_though_another_bundles_responder_hangs(
    web: WebServer, hanging: str, tmp_path: Path
) -> None:
    broker, plant, held = MemoryBroker(), Pki(), shared_device("meter-1")
    foreign = plant.certify(Identity("plant.example", Role.DEVICE, "meter-1", "plant"))
    web.pages["/ocsp"] = Responder(PKI.issuing, delegate(PKI), [held])
    bundles = []
    for name, authority, responder in (("plant", plant, hanging), ("ours", PKI, web.url)):
        anchors = tmp_path / f"{name}.pem"
        anchors.write_bytes(pem_of(authority.issuing.certificate))
        terms: dict[str, Any] = {"trust_domain": "plant.example", "groups": ["plant"]} if name == "plant" else {}
        asked = f"{responder}/ocsp"
        bundles.append(
            TrustSettings(name=name, anchors=(anchors,), ocsp_responder=asked, ocsp_policy=ADVISORY, **terms)
        )
    files = PKI.broker().write(tmp_path)
    config = BrokerConfig(
        cafile=tmp_path / "ours.pem",
        certfile=files.certificate,
        keyfile=files.key,
        trust=tuple(bundles),
        unsafe_no_revocation=True,
    )
    broker.engine.admission.believe(load_trust(config))
    for each in (foreign, held):
        broker.open(each).connect(client_id="meter-1")
    now = 0.0
    lists = RevocationLists(broker.engine, config, lambda: now)
    for times in (1, 2):
        await lists._asker._round(broker.engine)
        await lists._asker._rounds["ours"]
        assert web.requests["/ocsp"] == times
        now += 1000
    assert not lists._asker._rounds["plant"].done()
    await lists._asker.close()


async def test_a_file_that_hangs_at_the_start_keeps_no_other_list_from_being_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients were let in after ten seconds, and nothing was ever read again: whom our list revoked stayed."""
    monkeypatch.setattr("broker.sources.revocation_lists._PATIENCE", 0.05)
    broker, held, own = MemoryBroker(), shared_device("meter-1"), PKI.broker().write(tmp_path)
    hanging, ours = tmp_path / "partner.crl", tmp_path / "ours.crl"
    os.mkfifo(hanging)
    ours.write_bytes(crl(PKI.issuing))
    anchors = PKI.write_anchors(tmp_path)
    config = BrokerConfig(
        cafile=anchors, certfile=own.certificate, keyfile=own.key, crlfile=(hanging, ours), crl_check_seconds=0.01
    )
    broker.engine.admission.believe(load_trust(config))
    lists = RevocationLists(broker.engine, config, asyncio.get_running_loop().time)
    following = asyncio.create_task(lists.run())
    try:
        async with asyncio.timeout(60):
            await lists.current.wait()
            replace_file(ours, crl(PKI.issuing, [held], number=2))
            while broker.engine.admission.status.index.find(held.revocation.key) is None:
                await asyncio.sleep(0.001)
        assert set(broker.metrics.revocation_alarms) == {"CRL_UNREADABLE"}, "it is told; on a busy machine, of ours too"
        assert hanging in lists.files.being_read
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        os.close(os.open(hanging, os.O_RDWR))  # Its thread ends.


async def test_who_was_suspended_is_asked_about_again_though_the_bundle_is_called_otherwise_now(
    web: WebServer, tmp_path: Path
) -> None:
    broker, held, now = MemoryBroker(), shared_device("meter-1"), 0.0
    key = held.revocation.issuer_key_id, held.revocation.serial
    responder = Responder(PKI.issuing, delegate(PKI), [held])
    responder.revoked = {held.certificate.serial_number: x509.ReasonFlags.certificate_hold}
    web.pages["/ocsp"] = responder
    anchors, files = tmp_path / "anchors.pem", PKI.broker().write(tmp_path)
    anchors.write_bytes(pem_of(PKI.issuing.certificate))

    def called(name: str) -> BrokerConfig:
        asked = f"{web.url}/ocsp"
        trust = (TrustSettings(name=name, anchors=(anchors,), ocsp_responder=asked, ocsp_policy=ADVISORY),)
        own, key = files.certificate, files.key
        return BrokerConfig(cafile=anchors, certfile=own, keyfile=key, trust=trust, unsafe_no_revocation=True)

    broker.engine.admission.believe(load_trust(called("ours")))
    lists = RevocationLists(broker.engine, called("ours"), lambda: now)
    assert broker.engine.admission.trust is not None
    (issuer,) = broker.engine.admission.trust.bundles[0].anchors
    await lists._asker._ocsp.ask(held.certificate, issuer)
    assert broker.engine.admission.status.index.find(key) is not None
    broker.engine.admission.believe(load_trust(called("fleet")))
    responder.revoked, now = {}, 1000.0
    responder.age -= timedelta(seconds=1)
    await lists._asker._round(broker.engine)
    await asyncio.gather(*lists._asker._rounds.values())
    assert broker.engine.admission.status.index.find(key) is None
    await lists._asker.close()


def test_certificates_of_one_bundle_name_so_many_urls_and_leave_room_for_others() -> None:
    urls = CrlUrls(CrlIntake(MemoryBroker().engine, lambda: 0.0), 900.0, lambda: 0.0)
    many = [f"http://crl.plant.example/{number}" for number in range(300)]
    assert urls.follow(many, "plant") == many[:256]
    assert urls.follow(["http://crl.fleet.example/1"], "ours") == ["http://crl.fleet.example/1"]
    urls.configure([("plant", "http://crl.plant.example/written"), ("ours", "http://crl.fleet.example/written")])
    assert urls.follow(["http://crl.plant.example/written", many[299]], "plant") == ["http://crl.plant.example/written"]


class Unread(CrlIntake):
    """An intake that reads what comes from a bundle's servers when it is told to."""

    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__(broker.engine, lambda: 0.0)
        self.read = asyncio.Event()
        self.come = 0

    async def use(self, lists: list[bytes], source: str) -> Taken:
        if "/ours" not in source:
            self.come += 1
            await self.read.wait()
        return await super().use(lists, source)


async def test_lists_that_have_come_and_are_not_read_yet_are_few(web: WebServer) -> None:
    """A partner's certificates name hundreds of lists of 64 MB, which come faster than they can be read."""
    intake = Unread(MemoryBroker())
    urls = CrlUrls(intake, 900.0, asyncio.get_running_loop().time)
    named = [f"{web.url}/{number}.crl" for number in range(MANY)]
    web.pages |= {f"/{number}.crl": crl(PKI.issuing) for number in range(MANY)}
    fetching = [asyncio.create_task(urls.fetch(url, "plant")) for url in urls.follow(named, "plant")]
    async with asyncio.timeout(60):
        while intake.come < 4:
            await asyncio.sleep(0.01)
        for number in range(3):  # Meanwhile more would have come.
            web.pages[f"/ours-{number}"] = crl(PKI.issuing)
            for url in urls.follow([f"{web.url}/ours-{number}"], "ours"):
                await urls.fetch(url, "ours")
        assert (intake.come, sum(web.requests.values())) == (4, 7)
        intake.read.set()
        await asyncio.gather(*fetching)
    assert intake.come == MANY
    await urls.close()
