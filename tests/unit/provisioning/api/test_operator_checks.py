"""Operators who call together are looked up together, and each hears what is so when he calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy.engine import Connection

from provisioning.api.operator_checks import OperatorChecks
from provisioning.enrolment.authentication import AuthenticatedOperator, authenticate_operator
from provisioning.errors import Code, Refused
from provisioning.operator_role import OperatorRole
from provisioning.pki.revocation_reason import RevocationReason
from tests.support.fleet import Fleet
from tests.support.operators import operator

ResultT = TypeVar("ResultT")


class Gate:
    """The store's looks, counted, each of which begins only when the gate is open."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.looks = 0
        self.open = asyncio.Event()
        self.reached = asyncio.Event()

    async def look(self, work: Callable[[Connection], ResultT]) -> ResultT:
        result = await self._fleet.database.look(work)
        self.looks += 1
        self.reached.set()
        await self.open.wait()  # After the transaction: what changes now it has not seen.
        return result


def checks_of(fleet: Fleet) -> tuple[OperatorChecks, Gate]:
    gate = Gate(fleet)
    database: Any = gate
    return OperatorChecks(database, fleet.clock), gate


def ask(checks: OperatorChecks, certificate: x509.Certificate | None) -> asyncio.Task[AuthenticatedOperator]:
    der = b"" if certificate is None else certificate.public_bytes(Encoding.DER)
    return asyncio.create_task(checks.operator(certificate, der))


async def code_of(asked: asyncio.Task[AuthenticatedOperator]) -> Code:
    with pytest.raises(Refused) as caught:
        await asked
    return caught.value.code


async def test_each_hears_what_he_would_hear_alone(fleet: Fleet) -> None:
    checks, gate = checks_of(fleet)
    gate.open.set()
    anna, bert = await operator(fleet, "anna"), await operator(fleet, "bert", OperatorRole.ENROLLER)
    device, gone = await fleet.enrol(), await operator(fleet, "carl")
    await fleet.revocation.revoke_device("carl", RevocationReason.SUPERSEDED, by="anna")
    asked = [anna, bert, anna, device, gone, None, anna]
    together = await asyncio.gather(*(ask(checks, each) for each in asked), return_exceptions=True)
    assert gate.looks == 1, "one transaction for all"
    alone = [await heard_alone(fleet, each) for each in asked]
    assert [_comparable(each) for each in together] == [_comparable(each) for each in alone]
    assert [type(each) for each in alone].count(Refused) == 3


async def heard_alone(fleet: Fleet, certificate: x509.Certificate | None) -> object:
    try:
        return await fleet.database.read(
            lambda connection: authenticate_operator(connection, certificate, fleet.clock())
        )
    except Refused as refusal:
        return refusal


def _comparable(heard: object) -> object:
    return (heard.code, heard.detail) if isinstance(heard, Refused) else heard


async def test_who_calls_while_the_store_is_asked_hears_what_has_changed_meanwhile(fleet: Fleet) -> None:
    checks, gate = checks_of(fleet)
    await operator(fleet, "anna")
    bert = await operator(fleet, "bert")
    first = ask(checks, bert)
    await gate.reached.wait()
    await fleet.revocation.revoke_device("bert", RevocationReason.SUPERSEDED, by="anna")
    later = [ask(checks, bert) for _ in range(3)]
    await asyncio.sleep(0)
    gate.open.set()
    assert (await first).device.name == "bert"
    assert [await code_of(each) for each in later] == [Code.CERTIFICATE_REVOKED] * 3
    assert gate.looks == 2, "the three together"


async def test_who_leaves_takes_nothing_from_the_others(fleet: Fleet) -> None:
    checks, gate = checks_of(fleet)
    anna = await operator(fleet, "anna")
    leaving, staying = ask(checks, anna), ask(checks, anna)
    await gate.reached.wait()
    leaving.cancel()
    gate.open.set()
    assert (await staying).device.name == "anna"
    assert (await ask(checks, anna)).role is OperatorRole.ADMIN, "and who comes afterwards is answered"


async def test_a_store_that_fails_once_is_asked_again(fleet: Fleet) -> None:
    checks, gate = checks_of(fleet)
    gate.open.set()
    anna = await operator(fleet, "anna")
    real, failures = gate.look, [Refused(Code.UNAVAILABLE, "the store cannot be used now; try again")]

    async def fails_once(work: Callable[[Connection], ResultT]) -> ResultT:
        if failures:
            raise failures.pop()
        return await real(work)

    gate.look = fails_once  # type: ignore[method-assign]
    assert [await code_of(each) for each in (ask(checks, anna), ask(checks, anna))] == [Code.UNAVAILABLE] * 2
    assert (await ask(checks, anna)).device.name == "anna"
