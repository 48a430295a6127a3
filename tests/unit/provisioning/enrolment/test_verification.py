"""Requests that come together are verified beside the event loop, each believed or refused as one that comes alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
from sqlalchemy import text

from provisioning.ca import csr as csr_module
from provisioning.ca.csr import RequestRefused, verify_csr
from provisioning.ca.key_policy import KeyPolicy
from provisioning.enrolment import verification
from provisioning.enrolment.attempt import TokenCredential
from provisioning.enrolment.verification import RequestVerification
from provisioning.errors import Code
from tests.support.fleet import Fleet
from tests.support.requests import csr_der

POLICY = KeyPolicy()


def forged(name: str = "meter-1") -> bytes:
    """Return a request whose last bit, one of its signature, is another."""
    der = csr_der(names=[name])
    return der[:-1] + bytes([der[-1] ^ 1])


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """In which thread each signature was verified."""
    found: list[str] = []
    verify = csr_module._signed_as_usual

    def noted(*arguments: object) -> bool:
        found.append(threading.current_thread().name.partition("_")[0])
        return verify(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(csr_module, "_signed_as_usual", noted)
    return found


class Gate:
    """Holds the thread before it verifies."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        verify = csr_module._signed_as_usual

        def held(*arguments: object) -> bool:
            if threading.current_thread() is not threading.main_thread():
                self.reached.set()
                self.opened.wait()
            return verify(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(csr_module, "_signed_as_usual", held)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """One that is open at the end."""
    made = Gate(monkeypatch)
    yield made
    made.opened.set()


async def test_one_that_comes_alone_is_verified_where_it_is_and_several_beside(threads: list[str]) -> None:
    verifying, der = RequestVerification(), csr_der()
    assert await verifying.verify(der, POLICY) == await verifying.verify(der, POLICY, alone=True) == verify_csr(der)
    assert threads == ["MainThread"] * 3
    threads.clear()
    requests = [csr_der(names=[f"meter-{number}"]) for number in range(3)]
    found = await asyncio.gather(*(verifying.verify(each, POLICY) for each in requests))
    assert threads == ["verifier"] * 3
    assert found == [verify_csr(each) for each in requests]


async def test_where_no_thread_is_to_be_had_they_are_verified_on_the_loop(
    threads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    verifying, requests = RequestVerification(), [csr_der(), forged("meter-2")]

    async def verified_in() -> set[str]:
        threads.clear()
        good, bad = await asyncio.gather(*(verifying.verify(each, POLICY) for each in requests), return_exceptions=True)
        assert good == verify_csr(requests[0])
        assert isinstance(bad, RequestRefused)
        return set(threads)

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as limited:
        limited.setattr(threading.Thread, "start", refuse)
        assert await verified_in() == {"MainThread"}
    assert "verifier" in await verified_in()


async def test_a_forged_one_among_others_is_refused_and_they_are_not() -> None:
    requests = [csr_der(names=["meter-1"]), forged("meter-2"), csr_der(names=["meter-3"])]
    verifying = RequestVerification()
    found = await asyncio.gather(*(verifying.verify(each, POLICY) for each in requests), return_exceptions=True)
    assert isinstance(found[1], RequestRefused)
    assert (found[1].code, found[0], found[2]) == (Code.CSR_SIGNATURE, verify_csr(requests[0]), verify_csr(requests[2]))


async def test_whatever_goes_wrong_is_told_to_whoever_has_brought_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> bool:
        raise ZeroDivisionError

    monkeypatch.setattr(csr_module, "_signed_as_usual", fail)
    verifying = RequestVerification()
    for together in (1, 2):
        asked = (verifying.verify(csr_der(), POLICY) for _ in range(together))
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(each) for each in found] == [ZeroDivisionError] * together


async def test_who_is_cancelled_waits_for_nothing_and_the_others_have_their_answers(gate: Gate) -> None:
    verifying, requests = RequestVerification(), [csr_der(names=[f"meter-{number}"]) for number in range(3)]
    asked = [asyncio.create_task(verifying.verify(each, POLICY)) for each in requests]
    await asyncio.to_thread(gate.reached.wait)
    asked[1].cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked[1]
    gate.opened.set()
    assert await asyncio.gather(asked[0], asked[2]) == [verify_csr(requests[0]), verify_csr(requests[2])]
    assert verifying._handed_over == 0


async def test_where_too_many_wait_for_the_thread_the_loop_verifies(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "MOST", 2)
    verifying, der = RequestVerification(), csr_der()
    waiting = [asyncio.create_task(verifying.verify(der, POLICY)) for _ in range(2)]
    await asyncio.to_thread(gate.reached.wait)
    assert await asyncio.gather(*(verifying.verify(der, POLICY) for _ in range(3))) == [verify_csr(der)] * 3
    assert not any(each.done() for each in waiting), "the thread is held"
    gate.opened.set()
    assert await asyncio.gather(*waiting) == [verify_csr(der)] * 2


async def test_nothing_is_looked_up_for_a_request_before_its_signature_was_found_good(
    fleet: Fleet, gate: Gate, threads: list[str]
) -> None:
    """A forged request spends no token and leaves nothing behind, whoever comes together with it."""
    fleet.enrolment.service._under_way = 1  # As if one were being stored.
    names = ["meter-1", "meter-2", "meter-3"]
    tokens = {name: await fleet.token(name) for name in names}
    requests = {name: forged(name) if name == "meter-2" else csr_der(names=[name]) for name in names}
    asked = [
        asyncio.create_task(fleet.enrolment.enrol(requests[name], TokenCredential(name, tokens[name])))
        for name in names
    ]
    await asyncio.to_thread(gate.reached.wait)
    known = text("SELECT count(*) FROM devices WHERE name LIKE 'meter-%'")
    assert await fleet.database.read(lambda connection: connection.scalar(known)) == 0
    gate.opened.set()
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(found[1], RequestRefused)
    assert threads.count("verifier") == 3
    assert await fleet.database.read(lambda connection: connection.scalar(known)) == 2
    await fleet.enrolment.enrol(csr_der(names=["meter-2"]), TokenCredential("meter-2", tokens["meter-2"]))
