"""Of whoever does not come back after a restart the responder is asked, before his will is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from broker.config import BrokerConfig
from broker.sources.revocation_lists import RevocationLists
from broker.sources.trust_files import load_trust
from tests.support.pki import pem_of, shared_device, shared_pki
from tests.support.responder import Responder, delegate
from tests.support.stored import StoredBroker
from tests.support.web import WebServer
from tests.support.wire import will

PKI = shared_pki()
LAST = {"clean_start": False, "session_expiry_interval": 600}


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[StoredBroker]:
    opened = StoredBroker(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def web() -> Iterator[WebServer]:
    with WebServer() as opened:
        yield opened


@pytest.mark.parametrize("answer", ["revoked", "on hold", "good", "silent"])
async def test_the_will_of_who_is_absent_waits_for_what_a_responder_says(
    broker: StoredBroker, web: WebServer, tmp_path: Path, answer: str
) -> None:
    held = shared_device("meter-1")
    responder = Responder(PKI.issuing, delegate(PKI), [held], silent=answer == "silent")
    web.pages["/ocsp"] = responder
    reasons = {"revoked": x509.ReasonFlags.key_compromise, "on hold": x509.ReasonFlags.certificate_hold}
    if answer in reasons:
        responder.revoked[held.certificate.serial_number] = reasons[answer]
    files = PKI.broker().write(tmp_path)
    (tmp_path / "issuing.pem").write_bytes(pem_of(PKI.issuing.certificate))
    config = BrokerConfig(
        cafile=tmp_path / "issuing.pem",
        certfile=files.certificate,
        keyfile=files.key,
        ocsp_responder=f"{web.url}/ocsp",
        ocsp_policy="advisory",
    )
    broker.service(**LAST).subscribe("fleet/#", qos=1)
    broker.device("meter-1", will=will("fleet/meters/meter-1/event", qos=1), **LAST)
    after = broker.killed(away=5)
    watcher = after.service(**LAST)
    after.engine.admission.believe(load_trust(config))
    lists = RevocationLists(after.engine, config, asyncio.get_running_loop().time)
    after.advance(11)
    (asking,) = lists._asker._tasks
    assert watcher.received() == []
    await asking
    await lists.intake.enforce()
    after.advance(1)
    assert watcher.received() == [], "nobody knows how long it takes until there is an answer"
    after.advance(3)
    await lists._asker.close()
    assert watcher.payloads() == ([] if answer in reasons else [b"gone"])
    assert len(after.engine.registry) == (1 if answer == "revoked" else 2)
