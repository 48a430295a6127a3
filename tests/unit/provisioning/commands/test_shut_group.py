"""What is made for a group that would refuse it: said, since a production batch would be refused in the field."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from provisioning.client.enrolment import EnrolmentOperatorClient
from provisioning.client.operator import RequestRefused, ServiceUnavailable
from provisioning.client.operator_answers import IssuedToken
from provisioning.commands.shut_group import say_if_shut, say_which_are_full
from provisioning.errors import Code

UNKNOWN = RequestRefused(404, Code.GROUP_UNKNOWN, "no group")


CREATE = "fleet-provisioning group create west --way claim"
SET = "fleet-provisioning group set west --way"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (["claim"], ""),
        (["listed", "claim+approval"], ""),
        ([], ""),  # Closed on purpose.
        (["claims"], f"group west admits nobody by claim: {SET} claims --way claim"),
        (["token", "listed+token"], f"group west admits nobody by claim: {SET} token --way listed+token --way claim"),
        (UNKNOWN, f"group west is not configured, and admits nobody by claim: {CREATE}"),
        (RequestRefused(403, Code.OPERATOR_ROLE, "not yours"), ""),
        (ServiceUnavailable("gone"), ""),
    ],
)
async def test_a_group_that_does_not_admit_it_is_told_with_what_to_do(
    answer: list[str] | Exception, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    class Client:
        async def group(self, name: str) -> SimpleNamespace:
            assert name == "west"
            if isinstance(answer, Exception):
                raise answer
            return SimpleNamespace(ways=answer, new_key="refuse", full=False)

    await say_if_shut(cast("EnrolmentOperatorClient", Client()), "west", "claim")
    assert capsys.readouterr().err == (f"fleet-provisioning: {said}\n" if said else "")


@pytest.mark.parametrize(("new_key", "told"), [("refuse", True), ("approve", False)])
async def test_an_approval_in_a_group_that_asks_for_none_any_more_is_told(
    new_key: str, told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    class Client:
        async def group(self, _name: str) -> SimpleNamespace:
            return SimpleNamespace(ways=["token"], new_key=new_key, full=None)

    await say_if_shut(cast("EnrolmentOperatorClient", Client()), "lab", "approval")
    assert ("admits nobody by approval" in capsys.readouterr().err) is told


async def test_a_token_for_a_new_device_of_a_full_group_is_told_and_for_one_that_is_here_is_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Client:
        async def group(self, name: str) -> SimpleNamespace:
            if name == "new":
                raise UNKNOWN
            return SimpleNamespace(name=name, full=name == "west", maximum_devices=2)

    made = [
        SimpleNamespace(group=group, device_state=state)
        for group, state in (("west", "active"), ("new", None), ("north", None), (None, None))
    ]
    client = cast("EnrolmentOperatorClient", Client())
    await say_which_are_full(client, cast("list[IssuedToken]", made))
    assert not capsys.readouterr().err
    made.append(SimpleNamespace(group="west", device_state=None))
    await say_which_are_full(client, cast("list[IssuedToken]", made))
    assert "group west has its maximum of devices, 2: a new one is refused" in capsys.readouterr().err
