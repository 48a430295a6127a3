"""Between two commits: what would be lost or be there twice if the service died now, and who was told too early.

Each commit waits until the test has looked (`tests.support.held_store`), so no moment has to be met by luck. While one
waits, the rest of the service serves: whoever is not answered then, after so many others, is not answered before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.x509 import ocsp

from provisioning.client.csr import build_csr
from provisioning.client.est import EnrolmentRefused, EnrolmentUnavailable, EstClient
from provisioning.pki.keys import generate_key
from provisioning.pki.tls import CredentialPem, client_context
from tests.support.broker_process import wait_until
from tests.support.copied_certificates import copy_certificate, serial_of_copy
from tests.support.enrolled import Enrolled, enrol
from tests.support.held_store import HeldStore, held_on_postgresql, held_on_sqlite
from tests.support.ocsp import request_der

SETTINGS: dict[str, object] = {"crl_debounce_seconds": 0.05, "public_http_url": "http://ca.example.org"}
_OTHERS = 20
"""So many others are served while a commit waits."""
_PATIENCE = 60
_TOO_EARLY = 0.1
"""Seconds in which an answer would have arrived that was written before those to the others."""

_SPENT = "SELECT device, certificate_id IS NOT NULL FROM tokens WHERE used_at IS NOT NULL"
_ISSUED = (
    "SELECT d.name, c.serial FROM certificates c JOIN devices d ON d.id = c.device_id "
    "WHERE d.role = 'device' ORDER BY c.id"
)
_RESERVED = "SELECT serial FROM serial_reservations"
_SIGNED = ("certificate signed", "signing certificate")
_AUDITED = "SELECT subject, action FROM audit_entries WHERE action LIKE '%certificate%' AND subject LIKE 'meter-%'"
_HOLDS = (
    "SELECT (SELECT count(*) FROM revocations WHERE reason = 'certificateHold'), (SELECT count(*) FROM unfinished_ends)"
)
COPIES = 120
"""More than are looked at in one transaction with others."""
OF_ONE_KEY = 600
"""More than are revoked in two transactions."""
_REVOKED = "SELECT subject FROM audit_entries WHERE action = 'revoked'"


@dataclass
class Held:
    """A service whose commits can be held, and those who ask meanwhile."""

    store: HeldStore
    askers: ThreadPoolExecutor

    def ask(self, work: Callable[[], Any]) -> Future[Any]:
        return self.askers.submit(work)

    def enrol(self, name: str, token: str) -> Future[x509.Certificate]:
        csr, service = build_csr(generate_key(), name), self.store.service

        async def once() -> x509.Certificate:
            async with EstClient(service.https, service.bundle) as client:
                return await client.enrol(csr, user=name, token=token)

        return self.ask(lambda: asyncio.run(once()))

    def renew(self, device: Enrolled) -> Future[x509.Certificate]:
        service = self.store.service
        csr = build_csr(generate_key(), device.name, like=device.certificate)

        async def once() -> x509.Certificate:
            async with EstClient(service.https, service.bundle, CredentialPem(device.pem)) as client:
                return await client.reenrol(csr)

        return self.ask(lambda: asyncio.run(once()))

    def others_are_served(self) -> None:
        with httpx.Client(base_url=self.store.service.http, trust_env=False) as plain:
            for _ in range(_OTHERS):
                assert plain.get("/crl/issuing-ca.crl").status_code == 200

    def not_answered(self, asked: Future[Any]) -> None:
        """Check that the answer has not been sent though others are served."""
        self.others_are_served()
        with pytest.raises(TimeoutError):
            asked.exception(_TOO_EARLY)

    def status(self, device: Enrolled) -> ocsp.OCSPCertStatus:
        issuer = x509.load_pem_x509_certificate((self.store.service.dir / "issuing-ca.crt").read_bytes())
        answer = httpx.post(
            f"{self.store.service.http}/ocsp",
            content=request_der(device.certificate, issuer),
            headers={"Content-Type": "application/ocsp-request"},
            trust_env=False,
        )
        return ocsp.load_der_ocsp_response(answer.content).certificate_status

    def listed(self) -> tuple[int, set[int]]:
        """Return the number of the newest list, and what is in it."""
        found = x509.load_der_x509_crl(httpx.get(f"{self.store.service.http}/crl/issuing-ca.crl").content)
        number = found.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        return number, {each.serial_number for each in found}


@pytest.fixture(params=["SQLite", "PostgreSQL"])
def held(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    made = (
        held_on_sqlite(tmp_path, SETTINGS, monkeypatch)
        if request.param == "SQLite"
        else held_on_postgresql(tmp_path, SETTINGS, request.getfixturevalue("postgresql"))
    )
    with made as store, ThreadPoolExecutor() as askers:
        with store.service:
            try:
                yield Held(store, askers)
            finally:
                store.free()
        assert "Traceback" not in store.service.log


def check_whole(store: HeldStore, before: int) -> dict[str, str]:
    """Check that what survives is whole, and return who has which certificate."""
    rows = store.survived(_ISSUED)
    issued = dict(map(tuple, rows))
    assert len(issued) == len(rows), "one certificate for each"
    spent = store.survived(_SPENT)
    assert sorted(name for name, _ in spent) == sorted(issued), "a token is spent on a certificate, and only on one"
    assert all(bought for _, bought in spent)
    audited = sorted(map(tuple, store.survived(_AUDITED)))
    assert audited == sorted((name, action) for name in issued for action in _SIGNED), "the log tells of each"
    assert len(issued) >= before
    return issued


def test_kill_9_at_any_commit_of_an_enrolment_loses_nothing_and_does_nothing_twice(held: Held) -> None:
    store, service = held.store, held.store.service
    tokens = {name: service.token(device=name, group="north") for name in ("meter-1", "meter-2", "meter-3")}
    store.hold()
    asked = held.enrol("meter-1", tokens["meter-1"])
    commits, reserved = 0, set()
    while True:
        wait_until(lambda: store.is_held() or asked.done(), "a commit, or the answer", _PATIENCE, 0.005)
        if asked.done():
            break
        held.not_answered(asked)
        assert check_whole(store, 0) == {}
        reserved = {serial for (serial,) in store.survived(_RESERVED)}
        commits += 1
        store.let_one()
    assert commits
    serial = f"{asked.result().serial_number:x}"
    assert check_whole(store, 1) == {"meter-1": serial}
    assert serial in reserved, "it was on disk before anything was signed under it"
    assert serial not in {each for (each,) in store.survived(_RESERVED)}

    # Signed, and not recorded: nobody hears, nothing is spent, and nothing is signed under that number again.
    asked = held.enrol("meter-2", tokens["meter-2"])
    store.wait_until_held()
    held.not_answered(asked)
    abandoned = {each for (each,) in store.survived(_RESERVED)}
    store.kill()
    with pytest.raises(EnrolmentUnavailable):
        asked.result(_PATIENCE)
    assert check_whole(store, 1) == {"meter-1": serial}
    service.start()
    for name in ("meter-2", "meter-3"):
        assert f"{held.enrol(name, tokens[name]).result(_PATIENCE).serial_number:x}" not in abandoned
    assert set(check_whole(store, 3)) == set(tokens)
    with pytest.raises(EnrolmentRefused, match="TOKEN_USED"):
        held.enrol("meter-1", tokens["meter-1"]).result(_PATIENCE)
    done = service.command("audit", "verify", "--dir", str(service.dir))
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_revocation_holds_for_all_from_its_commit_on_and_for_nobody_before(held: Held) -> None:
    store, service = held.store, held.store.service
    (device,) = enrol(service, "meter-1")
    number, _ = held.listed()
    store.hold()
    # One certificate: its device may go on, so nothing but the certificate's status refuses the renewal.
    asked = held.ask(lambda: service.revoke(serial=device.serial))
    store.wait_until_held()
    renewal = held.renew(device)
    held.not_answered(asked)
    assert held.status(device) is ocsp.OCSPCertStatus.GOOD  # Remembered from now on, if anything is.
    assert held.listed() == (number, set())
    assert store.survived("SELECT * FROM revocations") == []
    assert store.survived(_REVOKED) == []
    held.not_answered(renewal)
    store.free()
    asked.result(_PATIENCE)
    with pytest.raises(EnrolmentRefused):
        renewal.result(_PATIENCE)
    assert held.status(device) is ocsp.OCSPCertStatus.REVOKED
    assert store.survived(_ISSUED) == [("meter-1", device.serial)], "it has no successor"
    assert store.survived(_REVOKED) == [("meter-1",)]
    wait_until(lambda: device.certificate.serial_number in held.listed()[1], "it is listed", _PATIENCE, 0.05)
    assert held.listed()[0] > number


def test_a_list_is_handed_out_when_it_is_in_the_store_and_its_number_is_never_used_again(held: Held) -> None:
    store, service = held.store, held.store.service
    (device,) = enrol(service, "meter-1")
    before = held.listed()
    store.hold()
    asked = held.ask(lambda: service.revoke(device="meter-1"))
    stored = "SELECT max(number) FROM crls WHERE issuer = 'issuing-ca'"
    counter = "SELECT value FROM counters WHERE name = 'crl/issuing-ca'"
    taken: list[int] = []
    while True:
        wait_until(
            lambda: store.is_held() or (asked.done() and held.listed() != before), "a commit, or the list", _PATIENCE
        )
        now = held.listed()
        assert [(now[0],)] == store.survived(stored), "what is handed out is in the store, and the other way round"
        if now != before:
            break
        taken.append(store.survived(counter)[0][0])
        store.let_one()
    assert now[1] == {device.certificate.serial_number}
    assert taken[-1] == now[0], "its number was on disk before it was signed"
    store.free()
    sequence = "SELECT max(sequence) FROM revocation_events"
    ((told,),) = store.survived(sequence)
    service.kill()
    service.start()
    enrol(service, "meter-2")
    service.revoke(device="meter-2")
    wait_until(lambda: len(held.listed()[1]) == 2, "a new list", _PATIENCE, 0.05)
    assert held.listed()[0] > now[0]
    assert store.survived(sequence) == [(told + 1,)]


def test_a_batch_is_decided_whole_and_what_follows_in_portions_is_done_by_the_next_start(held: Held) -> None:
    store, service = held.store, held.store.service
    names = ["meter-1", "meter-2", "meter-3"]
    devices = enrol(service, *names)
    copy_certificate(service, "meter-2", COPIES)

    def suspend() -> httpx.Response:
        with httpx.Client(verify=client_context(service.bundle, service.operator), trust_env=False) as api:
            return api.post(f"{service.https}/v1/suspensions", json={"devices": names})

    def so_far() -> tuple[list[str], int, int]:
        """Return who is suspended, how many certificates are on hold, and of how many devices something is left."""
        suspended = store.survived("SELECT name FROM devices WHERE suspended_at IS NOT NULL ORDER BY name")
        ((on_hold, left),) = store.survived(_HOLDS)
        return [name for (name,) in suspended], on_hold, left

    store.hold()
    asked = held.ask(suspend)
    store.wait_until_held()
    held.not_answered(asked)
    assert so_far() == ([], 0, 0), "killed now: nothing is decided"
    store.let_one()
    store.wait_until_held()
    held.not_answered(asked)
    assert so_far() == (names, 2, 1), "killed now: all of it is decided, and one follows in a portion"
    store.kill()
    with pytest.raises(httpx.HTTPError):
        asked.result(_PATIENCE)
    assert so_far() == (names, 2, 1)
    service.start()
    for device in devices:
        with pytest.raises(EnrolmentRefused, match="SUSPENDED"):
            held.renew(device).result(_PATIENCE)
    wait_until(lambda: so_far() == (names, 2 + 1 + COPIES, 0), "the rest is done", _PATIENCE, 0.05)
    again = suspend()
    assert (again.status_code, len(again.json()["suspended"])) == (200, 2 + 100), "of many, a hundred are told"
    done = service.command("audit", "verify", "--dir", str(service.dir))
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_compromised_key_ends_in_one_transaction_and_what_follows_is_done_by_the_next_start(held: Held) -> None:
    store, service = held.store, held.store.service
    (device,) = enrol(service, "meter-1")
    copy_certificate(service, "meter-1", OF_ONE_KEY, same_key=True)
    named = serial_of_copy(7)

    def so_far() -> tuple[int, int]:
        """Return how many are revoked for the key, and whether some are left."""
        ((revoked,),) = store.survived("SELECT count(*) FROM revocations WHERE reason = 'keyCompromise'")
        ((left,),) = store.survived("SELECT count(*) FROM unfinished_key_ends")
        return revoked, left

    assert held.status(device) is ocsp.OCSPCertStatus.GOOD  # Remembered from now on.
    store.hold()
    asked = held.ask(lambda: service.revoke(serial=named, reason="keyCompromise"))
    store.wait_until_held()
    held.not_answered(asked)
    assert so_far() == (0, 0), "killed now: nothing is decided"
    assert held.status(device) is ocsp.OCSPCertStatus.GOOD
    store.let_one()
    store.wait_until_held()
    held.not_answered(asked)
    assert so_far() == (1 + 250, 1), "killed now: the key has ended, and the rest follows"
    assert (
        store.survived(
            f"SELECT 1 FROM certificates c JOIN revocations r ON r.certificate_id = c.id "
            f"WHERE c.serial = '{device.serial}'"
        )
        == []
    )
    assert held.status(device) is ocsp.OCSPCertStatus.REVOKED, "though its own portion has not come"
    store.kill()
    with pytest.raises(httpx.HTTPError):
        asked.result(_PATIENCE)
    assert so_far() == (1 + 250, 1)
    service.start()
    with pytest.raises(EnrolmentRefused, match="CERTIFICATE_REVOKED"):
        held.renew(device).result(_PATIENCE)
    assert held.status(device) is ocsp.OCSPCertStatus.REVOKED
    wait_until(lambda: so_far() == (1 + OF_ONE_KEY, 0), "the rest is done", _PATIENCE, 0.05)
    sequences = store.survived("SELECT sequence FROM revocation_events ORDER BY sequence")
    assert sequences == [(number,) for number in range(1, OF_ONE_KEY + 2)], "each once, without a gap"
    assert [each["serial"] for each in service.revoke(serial=named, reason="keyCompromise")] == [named]
    assert len(store.survived("SELECT sequence FROM revocation_events")) == OF_ONE_KEY + 1
    done = service.command("audit", "verify", "--dir", str(service.dir))
    assert done.returncode == 0, done.stdout + done.stderr
