"""An approval is of what was asked for: a certificate for the device's own key, or a key that the service makes.

A request is no secret: who has a copy of one, and not its key, can send it to the other operation.
"""

from __future__ import annotations

from typing import Any

import pytest

from provisioning.enrolment.approvals import ApprovalService
from provisioning.enrolment.groups import parse_ways
from provisioning.enrolment.ways import approval
from provisioning.errors import Code, Pending, Refused
from provisioning.pki.keys import generate_key
from provisioning.store.approvals import ApprovalState
from provisioning.store.groups import Group, NewKey
from tests.support.fleet import Fleet
from tests.support.requests import csr_der
from tests.support.ways import HOUR, is_good


async def group(fleet: Fleet, **rules: Any) -> None:
    given: dict[str, Any] = {"ways": parse_ways(["approval"]), "same_key_window": HOUR, "server_keys": True} | rules
    await fleet.groups.create(Group("line", **given), by="admin")


async def approve(fleet: Fleet) -> None:
    (number,) = await approve_all(fleet)
    assert number > 0


async def approve_all(fleet: Fleet) -> list[int]:
    service = ApprovalService(fleet.database, fleet.clock)
    waiting, _ = await service.page(limit=9, after=0, group="line", state=ApprovalState.PENDING)
    return [(await service.decide(each.id, approve=True, by="boss")).id for each in waiting]


async def asked(fleet: Fleet, request: bytes, *, server_key: bool) -> Any:
    """Return the answer, or the code of the refusal, or None where the request waits."""
    enrol = fleet.enrolment.enrol_with_server_key if server_key else fleet.enrolment.enrol
    try:
        return await enrol(request, None, "line")
    except Pending:
        return None
    except Refused as refusal:
        return refusal.code


OTHER = {False: Code.KEY_REUSED, True: Code.SERVER_KEYS_REFUSED}
"""What the other kind of request with the same key is refused with, by whether that is for a key made here."""


@pytest.mark.parametrize("server_key", [False, True])
@pytest.mark.parametrize("new_key", [NewKey.REFUSE, NewKey.APPROVE])
async def test_an_approved_request_is_of_no_use_for_the_other_operation(
    fleet: Fleet, new_key: NewKey, *, server_key: bool
) -> None:
    await group(fleet, new_key=new_key)
    request = csr_der(generate_key(), names=["meter-1"])
    assert await asked(fleet, request, server_key=server_key) is None
    if not server_key:  # The other kind gives way: below.
        assert await asked(fleet, request, server_key=True) is OTHER[True], "while it waits"
    await approve(fleet)
    assert await asked(fleet, request, server_key=not server_key) is OTHER[not server_key], "once it is approved"
    answer = await asked(fleet, request, server_key=server_key)
    certificate = answer.certificate if server_key else answer
    assert await asked(fleet, request, server_key=not server_key) is OTHER[not server_key], "once it is answered"
    fleet.clock.advance(2 * HOUR)
    assert await asked(fleet, request, server_key=not server_key) is OTHER[not server_key], "and afterwards"
    assert await is_good(fleet, certificate)


async def deny(fleet: Fleet) -> None:
    service = ApprovalService(fleet.database, fleet.clock)
    (waiting,), _ = await service.page(limit=9, after=0, group="line", state=ApprovalState.PENDING)
    await service.decide(waiting.id, approve=False, by="boss")


async def test_what_was_denied_for_its_own_key_is_denied_for_one_made_here(fleet: Fleet) -> None:
    await group(fleet)
    request = csr_der(generate_key(), names=["meter-1"])
    assert await asked(fleet, request, server_key=False) is None
    await deny(fleet)
    assert await asked(fleet, request, server_key=True) is OTHER[True]
    assert await asked(fleet, request, server_key=False) is Code.APPROVAL_DENIED


@pytest.mark.parametrize("denied", [False, True])
async def test_a_copy_that_comes_first_as_the_other_kind_does_not_shut_the_device_out(
    fleet: Fleet, *, denied: bool
) -> None:
    """Its key may be in hardware: it could not make another one, nor could an operator help."""
    await group(fleet)
    request = csr_der(generate_key(), names=["meter-1"])
    assert await asked(fleet, request, server_key=True) is None, "the copy"
    service = ApprovalService(fleet.database, fleet.clock)
    (shown,), _ = await service.page(limit=9, after=0, group="line", state=None)
    if denied:
        await deny(fleet)
    assert await asked(fleet, request, server_key=False) is None
    assert await asked(fleet, request, server_key=True) is OTHER[True], "and not the other way round"
    with pytest.raises(Refused, match="APPROVAL_UNKNOWN"):
        await service.decide(shown.id, approve=True, by="boss")  # It is not what was shown under this number.
    await approve(fleet)
    assert await is_good(fleet, await asked(fleet, request, server_key=False))


async def test_the_kind_is_known_however_much_was_shown(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approval, "_LONGEST_EVIDENCE", 60)  # For names of manufacturers and claims as long as can be.
    await group(fleet, new_key=NewKey.APPROVE)
    first, second = (csr_der(generate_key(), names=["meter-1"]) for _ in range(2))
    assert await asked(fleet, second, server_key=True) is None
    assert await asked(fleet, first, server_key=False) is None
    await approve_all(fleet)
    assert await is_good(fleet, await asked(fleet, first, server_key=False))
    assert await asked(fleet, second, server_key=True) is None, "the name has been enrolled since"
    assert await asked(fleet, second, server_key=True) is None
    await approve(fleet)
    assert await asked(fleet, second, server_key=False) is OTHER[False]
    assert await is_good(fleet, (await asked(fleet, second, server_key=True)).certificate)
