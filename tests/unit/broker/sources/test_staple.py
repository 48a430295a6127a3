"""The staple of a broker as an operator is told of it; where there can be none nothing breaks, and it is said why."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from structlog.testing import capture_logs

from broker.credentials.own_certificate import OwnCertificate
from broker.settings.config import BrokerConfig
from broker.sources.staple import Staple
from provisioning.pki import openssl, stapling
from provisioning.pki.revocation import Revocation, certificate_key
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.tls import ClientCertificate, server_context
from tests.support.pki import Held, Pki, pem_of, shared_pki
from tests.support.responder import Responder
from tests.support.web import WebServer
from tests.support.wire import MemoryBroker

NOWHERE = "http://127.0.0.1:9/ocsp"
"""The discard port: nobody listens there."""


def staple(
    directory: Path, own: Held, anchors: str, clock: Callable[[], float] | None = None, **settings: Any
) -> tuple[Staple, MemoryBroker, ssl.SSLContext]:
    files = own.write(directory)
    cafile = directory / "anchors.pem"
    cafile.write_text(anchors)
    config = BrokerConfig(
        cafile=cafile, certfile=files.certificate, keyfile=files.key, unsafe_no_revocation=True, **settings
    )
    context = server_context(files, cafile, client_certificate=ClientCertificate.REQUIRED)
    broker = MemoryBroker()
    clock = clock or asyncio.get_running_loop().time
    return Staple(config, OwnCertificate(files, own.credential), broker.engine, clock), broker, context


async def document(made: Staple) -> dict[str, Any]:
    """Return what an operator is told once it has been tried."""
    running = asyncio.create_task(made.run())
    await made.tried()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return made.document(datetime.now(UTC))


async def test_where_openssl_cannot_be_asked_that_is_an_alarm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stapling, "CAN_STAPLE", False)
    monkeypatch.setattr(openssl, "AVAILABLE", False)
    pki = shared_pki()
    made, broker, context = staple(tmp_path, pki.broker(), pki.anchors, ocsp_stapling_responder=NOWHERE)
    made.adopt(context)
    told = await document(made)
    assert told["state"] == "missing"
    assert "cannot be asked to staple" in told["problem"]
    assert broker.metrics.revocation_alarms["STAPLE_FAILED"] == 1


async def test_a_certificate_whose_issuer_is_not_at_hand_has_none(tmp_path: Path) -> None:
    pki = shared_pki()
    own = pki.broker()
    alone = Held(own.certificate, own.key)
    made, _, context = staple(tmp_path, alone, pem_of(Pki().root.certificate).decode(), ocsp_stapling_responder=NOWHERE)
    made.adopt(context)
    told = await document(made)
    assert told["state"] == "missing"
    assert told["problem"].startswith("the certificate of its issuer is neither in ")


@pytest.mark.parametrize("url", ["https://ocsp.example/", "ldap://ocsp.example/"])
async def test_a_responder_that_is_not_asked_by_plain_http_is_none(tmp_path: Path, url: str) -> None:
    pki = shared_pki()
    place = x509.UniformResourceIdentifier(url)
    access = x509.AuthorityInformationAccess(
        [x509.AccessDescription(x509.oid.AuthorityInformationAccessOID.OCSP, place)]
    )
    made, broker, context = staple(tmp_path, pki.broker(extensions=[access]), pki.anchors)
    made.adopt(context)
    assert await document(made) == {"state": "no responder"}
    assert not broker.metrics.revocation_alarms


async def test_a_certificate_that_cannot_be_read_is_presented_without_one(tmp_path: Path) -> None:
    pki = shared_pki()
    unreadable = x509.UnrecognizedExtension(x509.oid.ExtensionOID.AUTHORITY_INFORMATION_ACCESS, b"\x30\x03\x01")
    made, _, context = staple(tmp_path, pki.broker(extensions=[unreadable]), pki.anchors)
    made.adopt(context)
    told = await document(made)
    assert told["state"] == "missing"
    assert told["problem"].startswith("the broker's own certificate cannot be read: ")


async def test_switched_off_nothing_is_asked(tmp_path: Path) -> None:
    pki = shared_pki()
    made, broker, context = staple(
        tmp_path, pki.broker(), pki.anchors, ocsp_stapling=False, ocsp_stapling_responder=NOWHERE
    )
    made.adopt(context)
    assert await document(made) == {"state": "off"}
    assert not broker.metrics.revocation_alarms


async def test_failures_are_tried_again_with_growing_pauses_and_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pki = shared_pki()
    made, broker, context = staple(tmp_path, pki.broker(), pki.anchors, ocsp_stapling_responder=NOWHERE)
    now = 0.0
    made._clock = lambda: now
    made.adopt(context)
    pauses = []
    for _ in range(8):
        await made._look()
        pauses.append(made._due - now)
        now = made._due
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    assert broker.metrics.revocation_alarms["STAPLE_FAILED"] == 8
    assert capsys.readouterr().out.count("STAPLE_FAILED") == 1
    await made._http.close()


@pytest.mark.parametrize("turns", range(6))
async def test_it_ends_when_it_is_cancelled_while_it_is_woken(tmp_path: Path, turns: int) -> None:
    """A broker that is stopped as its certificate is renewed: not one of its jobs may miss that."""
    pki = shared_pki()
    made, _, context = staple(tmp_path, pki.broker(), pki.anchors, ocsp_stapling=False)
    running = asyncio.create_task(made.run())
    await made.tried()
    await asyncio.sleep(0)
    made.adopt(context)
    for _ in range(turns):
        await asyncio.sleep(0)
    running.cancel()
    done, _ = await asyncio.wait([running], timeout=60)
    running.cancel()
    assert done


class Witness:
    """Whoever writes the audit log."""

    def __init__(self) -> None:
        self.heard_of_loss = asyncio.Event()

    def told(self, event: str, **_facts: object) -> None:
        if event == "staple lost":
            self.heard_of_loss.set()

    def saw(self, event: object) -> None:
        """Hear what happened to a client."""


async def test_what_is_told_of_a_staple_is_how_old_it_is_for_how_long_it_is_good_and_if_the_next_is_late(
    tmp_path: Path,
) -> None:
    pki, now = shared_pki(), 0.0
    own, minute = pki.broker(), timedelta(minutes=1)
    with WebServer() as web:
        web.pages["/ocsp"] = Responder(pki.issuing, pki.issuing, [own], nonce=False, life=60 * minute)
        url = f"{web.url}/ocsp"
        made, broker, context = staple(tmp_path, own, pki.anchors, lambda: now, ocsp_stapling_responder=url)
        witness = broker.engine.history.witness = Witness()
        made.adopt(context)
        running = asyncio.create_task(made.run())
        await made.tried()
        this_update = datetime.fromtimestamp(broker.metrics.staple_this_update_timestamp, UTC)
        about = {"serial": f"{own.certificate.serial_number:x}", "responder": url}
        dates = {
            "this_update": f"{this_update:%Y-%m-%dT%H:%M:%SZ}",
            "next_update": f"{this_update + 60 * minute:%Y-%m-%dT%H:%M:%SZ}",
        }
        ages = {"age_seconds": 600, "seconds_left": 3000}
        assert made.document(this_update + 10 * minute) == {"state": "current", **about, **dates, **ages}
        assert made.document(this_update + 31 * minute)["state"] == "current", "nothing has failed"
        web.pages.clear()
        now += 3600
        made.adopt(context)  # Wakes it, for now.
        await witness.heard_of_loss.wait()
        await asyncio.sleep(0)
        states = [made.document(this_update + minutes * minute)["state"] for minutes in (29, 31)]
        assert states == ["current", "late"], "there is still half of its time to get the next"
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_when_a_suspension_of_the_broker_ends_it_asks_at_once(tmp_path: Path) -> None:
    """Else clients that look at the staple would refuse it for half of the last answer's life."""
    pki, now = shared_pki(), 0.0
    own = pki.broker()
    key = certificate_key(own.certificate)
    with WebServer() as web:
        responder = web.pages["/ocsp"] = Responder(pki.issuing, pki.issuing, [own], nonce=False)
        url = f"{web.url}/ocsp"
        made, broker, context = staple(tmp_path, own, pki.anchors, lambda: now, ocsp_stapling_responder=url)
        index = broker.engine.admission.status.index
        made.adopt(context)
        await made._look()
        assert made.document(datetime.now(UTC))["state"] == "current"
        index.add(Revocation(*key, RevocationReason.CERTIFICATE_HOLD, datetime.now(UTC)))
        responder.revoked = {own.certificate.serial_number: x509.ReasonFlags.certificate_hold}
        for _ in range(2):
            await made._look()
            assert made.document(datetime.now(UTC))["state"] == "revoked"
        index.release(key)
        assert made.presented.find_revocation() is RevocationReason.CERTIFICATE_HOLD, "the answer still says so"
        responder.revoked = {}
        await made._look()
        assert made.presented.find_revocation() is None
        assert made.document(datetime.now(UTC))["state"] == "current"
        await made._http.close()


@pytest.mark.parametrize(
    ("settings", "can_staple"),
    [({}, True), ({"ocsp_stapling": False}, True), ({"ocsp_stapling_responder": NOWHERE}, False)],
)
async def test_without_a_responder_another_source_tells_that_it_is_revoked_until_it_is_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], can_staple: bool
) -> None:
    if not can_staple:
        monkeypatch.setattr(stapling, "CAN_STAPLE", False)
        monkeypatch.setattr(openssl, "AVAILABLE", False)
    pki, own = shared_pki(), shared_pki().broker()
    made, broker, context = staple(tmp_path, own, pki.anchors, **settings)
    presented = made.presented
    made.adopt(context)
    index, key = broker.engine.admission.status.index, certificate_key(own.certificate)
    state, hold = [], RevocationReason.CERTIFICATE_HOLD
    with capture_logs() as logs:
        for reason in (None, hold, hold, None, hold, RevocationReason.KEY_COMPROMISE):
            if reason is None:
                index.release(key)
            else:
                index.add(Revocation(*key, reason, pki.now))
            await made._look()
            state.append(presented.state_at(pki.now))
    assert state == ["ok", "on hold", "on hold", "ok", "on hold", "revoked"]
    told = [each for each in logs if each.get("code") == "OWN_CERTIFICATE_REVOKED"]
    assert [each["reason"] for each in told] == [str(hold)] * 2 + ["keyCompromise"], "each told once"
    assert {each["serial"] for each in told} == {f"{own.certificate.serial_number:x}"}
    assert broker.engine.metrics.revocation_alarms["OWN_CERTIFICATE_REVOKED"] == 3


async def test_a_responder_that_does_not_answer_does_not_keep_it_revoked(tmp_path: Path) -> None:
    pki, own = shared_pki(), shared_pki().broker()
    made, broker, context = staple(tmp_path, own, pki.anchors, ocsp_stapling_responder=NOWHERE)
    made.adopt(context)
    index, key = broker.engine.admission.status.index, certificate_key(own.certificate)
    index.add(Revocation(*key, RevocationReason.CERTIFICATE_HOLD, pki.now))
    await made._look()
    assert made.presented.find_revocation() is RevocationReason.CERTIFICATE_HOLD
    index.release(key)
    await made._look()
    assert made.presented.find_revocation() is None
