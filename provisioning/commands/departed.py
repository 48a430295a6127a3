"""What is said of operators who leave: what they had promised is void, and what they made still lets others in.

Whoever dismisses an operator has to know both: a production may wait for a token, and somebody may have put one aside.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Final

import typer

from provisioning.commands.service_command import counted, say

if TYPE_CHECKING:
    from provisioning.client.operator_answers import DepartedOperator

KeepTokens = Annotated[
    bool,
    typer.Option(
        "--keep-tokens", help="Of operators who leave: keep unused tokens that they made, and requests they approved."
    ),
]
_LEFT: Final = (
    ("tokens_left", "open token", "", "token void"),
    ("approvals_left", "approved request", "", "approval deny"),
    ("claims_left", "claim", "", "claim end"),
    ("listed_left", "key on lists", "keys on lists", "listed remove"),
    ("manufacturers_left", "manufacturer", "", "manufacturer end"),
    ("operators_left", "operator with a role from there", "operators with a role from there", "operator grant"),
)


def say_who_left(operators: Iterable[DepartedOperator]) -> None:
    """Say of each of *operators* what is void, and what is left."""
    for each in operators:
        say_what_is_void(each.name, each.tokens_voided, each.approvals_undone)
        if each.claims_left is None:
            say(
                f"fleet-provisioning: what {each.name} leaves behind that lets others in could not be counted: "
                f"audit show --by {each.name}"
            )
        left = [each_kind for each_kind in _LEFT if getattr(each, each_kind[0])]
        if left:
            numbers = ", ".join(counted(getattr(each, field), what, plural) for field, what, plural, _ in left)
            say(
                f"fleet-provisioning: {each.name} leaves behind what lets others in: {numbers}; if that is not "
                f"to stay: {', '.join(remedy for *_, remedy in left)} (audit show --by {each.name})"
            )


def say_what_is_void(name: str, tokens: int, approvals: int) -> None:
    """Say how many *tokens* of the operator called *name* are void, and how many *approvals* undone."""
    if tokens:
        are = "is" if tokens == 1 else "are"
        say(f"fleet-provisioning: {counted(tokens, 'unused token')} that {name} made {are} void")
    if approvals:
        wait = "waits" if approvals == 1 else "wait"
        say(f"fleet-provisioning: {counted(approvals, 'request')} that {name} approved {wait} for another decision")
