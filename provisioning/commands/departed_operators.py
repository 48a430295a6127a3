"""What is said of operators who leave: what they had promised is void, and what they made still lets others in.

Whoever dismisses an operator has to know both: a production may wait for a token, and somebody may have put one aside.
A claim is told by its name: the operator was given its key, and so were the devices of a batch, which may be on their
way. ``--end-claims`` ends those, ``--end-listed`` what he has put on lists; a key that was compromised has ended both
already, and manufacturers. Operators with a role from the one who leaves come first, by their names: each of them may
do all this again. After a theft, what the thief may have changed is told as well, with what to do about it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Final

import typer

from provisioning.commands.service_command import say
from provisioning.program.counted import counted

if TYPE_CHECKING:
    from provisioning.client.enrolment import EnrolmentOperatorClient
    from provisioning.client.operator_answers import DepartedOperator

KeepTokens = Annotated[
    bool,
    typer.Option(
        "--keep-tokens", help="Of operators who leave: keep unused tokens that they made, and requests they approved."
    ),
]
EndClaims = Annotated[
    bool,
    typer.Option(
        "--end-claims",
        help="Of operators who leave: end the claims that they made. Devices that have not enrolled cannot any more.",
    ),
]
EndListed = Annotated[
    bool,
    typer.Option(
        "--end-listed",
        help="Of operators who leave: end the entries that they put on lists of expected devices, and nobody else has.",
    ),
]
_NAMED: Final = 20
_LEFT: Final = (
    ("tokens_left", "open token", "", "token void"),
    ("approvals_left", "approved request", "", "approval deny"),
    ("claims_left", "claim", "", "claim end, or this again with --end-claims"),
    ("listed_left", "key on lists", "keys on lists", "listed end --by {name}, or this again with --end-listed"),
    ("manufacturers_left", "manufacturer", "", "manufacturer end"),
    ("operators_left", "operator with a role from there", "operators with a role from there", "operator grant"),
)


async def end_claims_of(client: EnrolmentOperatorClient, operators: list[DepartedOperator]) -> None:
    """End the claims that each of *operators* has made and that go on, and count them there as ended."""
    going_on = await claims_going_on(client, {each.name for each in operators})
    for place, each in enumerate(operators):
        ended = each.claims_ended
        for name in going_on.pop(each.name, ()):
            await client.end_claim(name)
            ended += 1
            left = None if each.claims_left is None else max(0, each.claims_left + each.claims_ended - ended)
            operators[place] = each.model_copy(update={"claims_ended": ended, "claims_left": left})


async def claims_going_on(client: EnrolmentOperatorClient, makers: Collection[str]) -> dict[str, list[str]]:
    """Return the names of the claims that *makers* have made and that have neither ended nor expired, by maker.

    All claims are read, once; or none, if nobody has left.
    """
    now = datetime.now(UTC)
    going_on: dict[str, list[str]] = {}
    if not makers:
        return going_on
    async for each in client.claims():
        if each.created_by in makers and each.ended_at is None and now < each.expires_at:
            going_on.setdefault(each.created_by, []).append(each.name)
    return going_on


async def end_listed_of(client: EnrolmentOperatorClient, operators: list[DepartedOperator]) -> None:
    """End what each of *operators* has put on lists, and count it there as ended."""
    for place, each in enumerate(operators):
        ended = await client.end_listed_by(each.name)
        operators[place] = each.model_copy(
            update={
                "listed_ended": each.listed_ended + ended.listed_ended,
                "lists_ended": sorted({*each.lists_ended, *ended.lists_ended}),
                "listed_left": 0,
            }
        )


def say_who_left(operators: Iterable[DepartedOperator], *, stolen: bool) -> None:
    """Say of each of *operators* what is void, and what is left; what was changed as well if a key was *stolen*."""
    for each in operators:
        if each.operators_made:
            _say_who_stays(each.name, each.operators_made)
        if each.roles_ended:
            _say_which_roles_ended(each.name, each.roles_ended)
        say_what_is_void(each.name, each.tokens_voided, each.approvals_undone)
        say_what_ended(each.name, each.claims_ended)
        if each.trials_ended:
            say(
                f"fleet-provisioning: {counted(each.trials_ended, 'device')} on trial of claims that {each.name} made "
                "cannot be activated any more"
            )
        if each.manufacturers_ended:
            _say_who_is_not_trusted(each)
        say_what_is_unlisted(each.name, each.listed_ended, each.lists_ended)
        if stolen:
            _say_what_was_changed(each)
        if each.claims_left is None:
            say(
                f"fleet-provisioning: what {each.name} leaves behind that lets others in could not be counted: "
                f"operator left {each.name}, audit show --by {each.name}"
            )
        named = ({"operators_left"} if each.operators_made else set[str]()) | ({"listed_left"} if stolen else set())
        left = [each_kind for each_kind in _LEFT if each_kind[0] not in named and getattr(each, each_kind[0])]
        if left:
            numbers = ", ".join(counted(getattr(each, field), what, plural) for field, what, plural, _ in left)
            remedies = ", ".join(remedy for *_, remedy in left).format(name=each.name)
            say(
                f"fleet-provisioning: {each.name} leaves behind what lets others in: {numbers}; if that is not "
                f"to stay: {remedies} (operator left {each.name})"
            )


def _say_who_stays(name: str, operators: list[str]) -> None:
    """Say which *operators*, who have a role from the one called *name*, may let others in."""
    shown = operators[:_NAMED]
    more = f" and {len(operators) - _NAMED} more (operator list)" if operators[_NAMED:] else ""
    ended = " ".join(f"--device {each}" for each in shown)
    say(
        f"fleet-provisioning: {name} has given a role to {', '.join(shown)}{more}, who may let others in; if that is "
        f"not to stay: fleet-provisioning revoke {ended} --reason keyCompromise, or operator grant NAME --role auditor"
    )


def _say_who_is_gone(name: str, operators: Sequence[str]) -> None:
    """Say which *operators* had a role from the one called *name* and were ended since: perhaps by a thief."""
    ended = " ".join(f"--device {each}" for each in operators[:_NAMED])
    say(
        f"fleet-provisioning: {_few(operators)} had a role from {name} and {'is' if len(operators) == 1 else 'are'} "
        f"gone, and what they made may let others in (operator left NAME); if nobody knows them: fleet-provisioning "
        f"revoke {ended} --reason keyCompromise"
    )


def _say_which_roles_ended(name: str, ended: Sequence[str]) -> None:
    """Say under which names nobody is who was given a role by the one called *name*; they have *ended*."""
    what = "the role that {} gave to {} has" if len(ended) == 1 else "the roles that {} gave to {} have"
    say(
        f"fleet-provisioning: {what.format(name, _few(ended))} ended: no operator is enrolled by that name; who "
        "enrols by it only reads, unless an admin grants more: operator grant"
    )


def _say_who_is_not_trusted(departed: DepartedOperator) -> None:
    """Say which manufacturers have ended with their operator, and what came in by them."""
    ended = departed.manufacturers_ended
    have = "has" if len(ended) == 1 else "have"
    say(
        f"fleet-provisioning: {counted(len(ended), 'manufacturer')} that {departed.name} registered {have} ended: "
        f"{', '.join(ended)}; an admin who knows the CA registers it again: manufacturer add"
    )


def say_what_is_unlisted(name: str, entries: int, groups: list[str]) -> None:
    """Say how many *entries* that the operator called *name* has put on the lists of *groups* have ended."""
    if entries:
        have, one = "has" if entries == 1 else "have", len(groups) == 1
        say(
            f"fleet-provisioning: {counted(entries, 'entry', 'entries')} that {name} put on the "
            f"{'list' if one else 'lists'} of {_few(groups)} {have} ended; whoever knows the devices lists them again: "
            f"listed import {groups[0] if one else 'GROUP'} --file (listed list says which)"
        )


def _say_what_was_changed(departed: DepartedOperator) -> None:
    """Say what an operator whose key was stolen has changed, or whoever has it, and what to do."""
    name = departed.name
    if departed.operators_gone:
        _say_who_is_gone(name, departed.operators_gone)
    known = f", at least {departed.devices_left} of them by a manufacturer's CA or a key on a list"
    # None is known if a thief has removed their entries again: the audit log knows.
    known = known if departed.devices_left else ""
    say(f"fleet-provisioning: devices that came in on {name}'s word stay{known}: audit show --by {name}")
    if departed.listed_left:
        lets = "lets its device" if departed.listed_left == 1 else "let their devices"
        say(
            f"fleet-provisioning: {counted(departed.listed_left, 'key')} on lists from {name} {lets} in still, listed "
            f"by another key of {name} since; if they are not to: listed end --by {name}"
        )
    if groups := departed.groups_changed:
        closed = f"group set {groups[0] if len(groups) == 1 else 'NAME'} --closed"
        say(
            f"fleet-provisioning: {name} has made, or changed, the rules of {_few(groups)}; operator left {name} shows "
            f"what they were; put them right: group set; to let nobody in until then: {closed}"
        )
    if makers := departed.manufacturers_changed:
        say(
            f"fleet-provisioning: {name} has changed the terms or the lists of {_few(makers)}: look at them: "
            f"manufacturer show, manufacturer set (audit show --by {name})"
        )
    if cut := departed.lists_cut:
        say(
            f"fleet-provisioning: {name} has ended, removed or replaced entries on the lists of {_few(cut)}, perhaps "
            f"others' (operator left {name} shows which); whoever knows the devices lists them again: listed import"
        )
    if devices := departed.devices_resumed:
        named = " ".join(f"--device {each}" for each in devices[:_NAMED])
        every = f" (all: audit show resumed --by {name})" if devices[_NAMED:] else ""
        say(f"fleet-provisioning: {name} has resumed {_few(devices)}{every}; if nobody else knows why: suspend {named}")


def _few(names: Sequence[str]) -> str:
    """Return the first *names*, and how many there are besides: at least, as the service names a hundred."""
    more = f" and at least {len(names) - _NAMED} more" if names[_NAMED:] else ""
    return f"{', '.join(names[:_NAMED])}{more}"


def say_what_ended(name: str, claims: int) -> None:
    """Say how many *claims* of the operator called *name* have ended."""
    if claims:
        have = "has" if claims == 1 else "have"
        say(f"fleet-provisioning: {counted(claims, 'claim')} that {name} made {have} ended")


def say_what_is_void(name: str, tokens: int, approvals: int) -> None:
    """Say how many *tokens* of the operator called *name* are void, and how many *approvals* undone."""
    if tokens:
        are = "is" if tokens == 1 else "are"
        say(f"fleet-provisioning: {counted(tokens, 'unused token')} that {name} made {are} void")
    if approvals:
        wait = "waits" if approvals == 1 else "wait"
        say(f"fleet-provisioning: {counted(approvals, 'request')} that {name} approved {wait} for another decision")
