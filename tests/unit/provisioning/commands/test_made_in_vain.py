"""What an operator gives to a device that will be refused all the same: said at once, not in the field."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from provisioning.client.enrolment import EnrolmentOperatorClient
from provisioning.client.enrolment_answers import Approval
from provisioning.client.operator import RequestRefused, ServiceUnavailable
from provisioning.client.operator_answers import IssuedToken
from provisioning.commands.approval_commands import say_if_in_vain
from provisioning.commands.readmitted import say_who_is_here
from provisioning.errors import Code

HERE = "; the name is enrolled already"


@pytest.mark.parametrize(
    ("evidence", "state", "new_key", "said"),
    [
        ("nothing", "active", "refuse", ""),
        ("nothing" + HERE, "active", "approve", ""),
        ("nothing" + HERE, "active", "refuse", "fleet-provisioning group set lab --new-key approve"),
        ("claim batch" + HERE, "active", "replace", "fleet-provisioning group set lab --new-key approve"),
        ("manufacturer acme 17" + HERE, "active", "replace", ""),
        ("listed key" + HERE, "active", "replace", ""),
        ("listed" + HERE, "active", "replace", "fleet-provisioning group set lab --new-key approve"),
        ("token 7" + HERE, "revoked", "refuse", ""),
        ("manufacturer acme 17+token 7" + HERE, "revoked", "refuse", ""),
        ("nothing" + HERE, "decommissioned", "refuse", "enrol the device under another name"),
        ("nothing" + HERE, "revoked", "approve", "fleet-provisioning token create --device meter-1"),
        ("nothing" + HERE, "suspended", "approve", "fleet-provisioning resume --device meter-1"),
        ("nothing" + HERE, RequestRefused(404, Code.DEVICE_UNKNOWN, "gone"), "refuse", ""),
        ("nothing" + HERE, ServiceUnavailable("gone"), "refuse", ""),
    ],
)
async def test_an_approval_that_is_not_enough_is_told_with_what_would_be(
    evidence: str, state: str | Exception, new_key: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    class Client:
        async def device(self, name: str) -> SimpleNamespace:
            assert name == "meter-1"
            if isinstance(state, Exception):
                raise state
            return SimpleNamespace(state=state)

        async def group(self, name: str) -> SimpleNamespace:
            assert name == "lab"
            return SimpleNamespace(new_key=new_key)

    approved = cast("Approval", SimpleNamespace(name="meter-1", group="lab", evidence=evidence))
    await say_if_in_vain(cast("EnrolmentOperatorClient", Client()), approved)
    told = capsys.readouterr().err
    assert told.endswith(f": {said}\n") if said else not told


def test_a_token_for_a_suspended_device_is_told_to_be_good_for_nothing_yet(
    capsys: pytest.CaptureFixture[str],
) -> None:
    states = {"meter-1": "suspended", "meter-2": "active", "meter-3": None}
    tokens = [cast("IssuedToken", SimpleNamespace(device=name, device_state=state)) for name, state in states.items()]
    say_who_is_here(tokens[:1])
    say_who_is_here(tokens)
    held = "fleet-provisioning: 1 device (meter-1) is suspended, and refused with any token: resume it first"
    here = "fleet-provisioning: 1 device (meter-2) is enrolled already: with its token each may have another key"
    assert capsys.readouterr().err.splitlines() == [held, held, here]
