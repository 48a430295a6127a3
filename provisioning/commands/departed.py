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
    ("tokens_left", "open token", ""),
    ("approvals_left", "approved request", ""),
    ("claims_left", "claim", ""),
    ("listed_left", "key on lists", "keys on lists"),
    ("manufacturers_left", "manufacturer", ""),
    ("operators_left", "operator with a role from there", "operators with a role from there"),
)


def say_who_left(operators: Iterable[DepartedOperator]) -> None:
    """Say of each of *operators* what is void, and what is left."""
    for each in operators:
        say_what_is_void(each.name, each.tokens_voided, each.approvals_undone)
        left = [counted(number, what, plural) for field, what, plural in _LEFT if (number := getattr(each, field)) > 0]
        if left:
            say(
                f"fleet-provisioning: {each.name} leaves behind what lets others in: {', '.join(left)}; if that is not "
                f"to stay: token void, claim end, listed remove, manufacturer end (audit show --by {each.name})"
            )


def say_what_is_void(name: str, tokens: int, approvals: int) -> None:
    """Say how many *tokens* of the operator called *name* are void, and how many *approvals* undone."""
    if tokens:
        are = "is" if tokens == 1 else "are"
        say(f"fleet-provisioning: {counted(tokens, 'unused token')} that {name} made {are} void")
    if approvals:
        wait = "waits" if approvals == 1 else "wait"
        say(f"fleet-provisioning: {counted(approvals, 'request')} that {name} approved {wait} for another decision")
