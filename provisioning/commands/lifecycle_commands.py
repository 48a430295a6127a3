"""The operator's commands that end or interrupt a device's access: revoke, suspend, resume, decommission."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

from provisioning.commands.departed_operators import (
    EndClaims,
    EndListed,
    KeepTokens,
    end_claims_of,
    end_listed_of,
    say_who_left,
)
from provisioning.commands.in_steps import check_none_refused, in_steps
from provisioning.commands.left_to_the_device import (
    say_which_are_for_the_same_key,
    say_who_had_not_come,
    tell_what_is_left,
)
from provisioning.commands.meant_devices import Doing, Meant, Named, Yes
from provisioning.commands.printed_rows import printed
from provisioning.commands.reason_option import reason_option
from provisioning.commands.service_command import Connection, InvalidityDate, connected, say
from provisioning.commands.still_suspended import say_what_stays_suspended
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.program.gathered_options import with_options
from provisioning.program.json_output import Json
from provisioning.program.moments import shown_time
from provisioning.revocation.reasons import OPERATOR_REASONS

if TYPE_CHECKING:
    from provisioning.client.enrolment import EnrolmentOperatorClient
    from provisioning.client.operator import OperatorClient
    from provisioning.client.operator_answers import (
        DepartedOperator,
        OtherForKey,
        ReleasedCertificate,
        RevokedCertificate,
        StillSuspended,
    )

FoundT = TypeVar("FoundT")

_COLUMNS: Final = ("serial", "device", "reason", "revoked", "sequence")
_SUSPENDED_COLUMNS: Final = ("serial", "device", "reason", "suspended", "sequence")
_RELEASED_COLUMNS: Final = ("serial", "device", "released", "sequence")
_ENDED: Final = frozenset({"revoked", "decommissioned"})
_REASONS: Final = tuple(reason for reason in RevocationReason if reason in OPERATOR_REASONS)


@connected
@with_options(Named)
def revoke(
    named: Named,
    connection: Connection,
    reason: Annotated[RevocationReason, reason_option(_REASONS)] = RevocationReason.UNSPECIFIED,
    invalidity_date: InvalidityDate = None,
    keep_tokens: KeepTokens = False,
    end_claims: EndClaims = False,
    end_listed: EndListed = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Revoke devices or certificates, finally. Open sessions are closed at once, the CRL follows.

    Many are revoked in steps of five hundred; a step is done completely or, if it names an unknown
    device, not at all; what was revoked is printed after each. Repeating it is harmless: what is revoked keeps its
    first date and reason; only keyCompromise replaces another reason, the date stays. If a group still admits
    devices, close it first, or leave it only the ways it is to keep: group set. Open tokens of a revoked device are
    void; of a device of which only a certificate is revoked (--serial, --certificate), tokens and other certificates
    stay, and it is said which it has. A device that has not come yet, and is expected by a token, a list or an
    approval, is revoked by its name all the same: nobody enrols by it then.

    After a restore or a fail-over the service may have lost a certificate that brokers still admit: --certificate
    revokes it by its file. If the service has lost its device too, that is revoked, with its open tokens.

    An operator who has no valid certificate left leaves: tokens that he made and nobody has used are void, and requests
    that he approved wait for another decision. --keep-tokens keeps both, except for keyCompromise, until the command is
    repeated without it. Claims that he made go on, as devices on their way have their keys, too, and so does what he
    put on lists: --end-claims and --end-listed end them, and keyCompromise does in any case. With keyCompromise the
    manufacturers that he registered end as well, and it is said what he has changed (operator left).

    \b
    Example:
      fleet-provisioning revoke --device meter-17 --device meter-18 --reason keyCompromise
      fleet-provisioning revoke --device meter-17 --reason keyCompromise --invalidity-date 2027-01-05T08:00:00
      fleet-provisioning revoke --devices-file stolen.txt --reason keyCompromise
      fleet-provisioning revoke --certificate meter-17.crt --reason keyCompromise
      fleet-provisioning revoke --group west --reason cessationOfOperation
      fleet-provisioning revoke --claim batch-2026-11 --reason keyCompromise
    """
    named.check("device", "serial", "devices_file", "serials_file", "certificate", "group", "claim", "manufacturer")
    since = invalidity_date
    compromised = reason is RevocationReason.KEY_COMPROMISE  # It replaces another reason.
    doing = Doing("revoke", lambda each: compromised or each.state not in _ENDED, for_ever=True)
    meant = named.meant(named.together(connection, doing, yes=yes))
    total = kept = 0
    whose: list[str] = []
    departed: list[DepartedOperator] = []
    names: list[str] = []

    async def command(client: EnrolmentOperatorClient) -> None:
        with printed(_COLUMNS, _row, as_json=as_json) as show:

            def report(found: Sequence[RevokedCertificate]) -> None:
                nonlocal total, kept
                show(found)
                total += len(found)
                whose.extend(each.device for each in found if meant.kind != "device")
                kept += sum(each.reason != reason or bool(since and each.invalidity_date != since) for each in found)

            told = partial(client.revoke, keep_tokens=keep_tokens, tell=departed.append, tell_name=names.append)
            ask = partial(told, reason=reason, invalidity_date=since)
            try:
                await _each(meant, ask, report, "revoked", goes_on=False)
            finally:  # What was done before a later step failed is done.
                say_who_had_not_come(names, "nobody gets one without a token that is made from now on")
                await _tell_who_left(client, departed, end_claims=end_claims, end_listed=end_listed, stolen=compromised)
        if kept:
            say(f"fleet-provisioning: revoked before, with the reason and date shown: {kept} of {total}")
        await tell_what_is_left(client, whose, "revoke")

    connection.run(command)


@connected
@with_options(Named, without={"certificate"})
def suspend(
    named: Named,
    connection: Connection,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Suspend devices or certificates until they are resumed. Open sessions are closed at once.

    A file or a group is suspended in steps of five hundred, each done completely: devices that cannot be suspended
    are reported, the others are suspended. Repeating it is harmless. A suspended device cannot enrol; one of which
    only a certificate is suspended (--serial) can, with an open token for another key. That certificate stays suspended
    until it is resumed by itself, whatever becomes of its device; others for its key stay good, and are told. While an
    operator is suspended as a whole (--device), tokens that he made are void; while only a certificate is, they are
    good.

    \b
    Example:
      fleet-provisioning suspend --device meter-17
      fleet-provisioning suspend --devices-file doubtful.txt
      fleet-provisioning suspend --group west
    """
    named.check("device", "serial", "devices_file", "serials_file", "group", "claim", "manufacturer")
    doing = Doing("suspend", lambda each: each.state == "active")
    meant = named.meant(named.together(connection, doing, yes=yes))

    whose: list[str] = []
    others: list[OtherForKey] = []
    done: set[str] = set()

    async def command(client: EnrolmentOperatorClient) -> None:
        with printed(_SUSPENDED_COLUMNS, _row, as_json=as_json) as show:

            def report(found: Sequence[RevokedCertificate]) -> None:
                show(found)
                done.update(each.serial for each in found)
                whose.extend(each.device for each in found if meant.kind == "serial")

            try:
                await _each(meant, partial(client.suspend, tell=others.append), report, "suspended")
            finally:  # What was done before a later step failed is done.
                say_which_are_for_the_same_key(each for each in others if each.serial not in done)
        await tell_what_is_left(client, whose, "suspend")

    connection.run(command)


@connected
@with_options(Named, without={"certificate"})
def resume(
    named: Named,
    connection: Connection,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """End the suspension of devices or certificates: the certificates are valid again.

    A device and a single certificate (--serial) are suspended independently of each other: of a device, certificates
    that were suspended by themselves stay suspended, and of a device that is suspended as a whole, a certificate does.
    It is said which. In a group, only devices suspended as a whole are resumed.

    \b
    Example:
      fleet-provisioning resume --device meter-17
      fleet-provisioning resume --serial 43555deb683f6f04348b9e168ab6561b
      fleet-provisioning resume --devices-file doubtful.txt
      fleet-provisioning resume --group west
    """
    named.check("device", "serial", "devices_file", "serials_file", "group", "claim", "manufacturer")
    doing = Doing("resume", lambda each: each.state == "suspended")
    meant = named.meant(named.together(connection, doing, yes=yes))

    async def command(client: OperatorClient) -> None:
        total = 0
        stay: list[StillSuspended] = []
        with printed(_RELEASED_COLUMNS, _released_row, as_json=as_json) as show:

            def show_some(found: Sequence[ReleasedCertificate]) -> None:
                nonlocal total
                total += len(found)
                if found:
                    show(found)

            try:
                await _each(meant, partial(client.resume, tell=stay.append), show_some, "resumed")
            finally:  # What was done before a later step failed is done.
                say_what_stays_suspended(stay)
        if not (total or stay or named.group or as_json):
            devices = "the device is" if len(meant.which) == 1 else "the devices are"
            active = f"; {devices} active" if meant.kind == "device" else ""
            say(f"fleet-provisioning: no certificate was on hold for a suspension{active}")

    connection.run(command)


@connected
@with_options(Named, without={"serial", "serials_file", "certificate"})
def decommission(
    named: Named,
    connection: Connection,
    keep_tokens: KeepTokens = False,
    end_claims: EndClaims = False,
    end_listed: EndListed = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Revoke devices permanently: their names never get a certificate again.

    A file or a group is done in steps of five hundred, each done completely: devices that cannot be decommissioned
    are reported, the others are decommissioned. Repeating it is harmless.

    Tokens that an operator among them has made and nobody has used are void, and requests that he approved wait for
    another decision; --keep-tokens keeps both, until the command is repeated without it. --end-claims also ends the
    claims that he made, --end-listed what he put on lists.

    \b
    Example:
      fleet-provisioning decommission --device meter-17
      fleet-provisioning decommission --devices-file scrapped.txt
      fleet-provisioning decommission --group west
    """
    named.check("device", "devices_file", "group", "claim", "manufacturer")
    doing = Doing("decommission", lambda each: each.state != "decommissioned", for_ever=True)
    meant = named.meant(named.together(connection, doing, yes=yes))

    departed: list[DepartedOperator] = []
    names: list[str] = []

    async def command(client: EnrolmentOperatorClient) -> None:
        with printed(_COLUMNS, _row, as_json=as_json) as show:
            ask = partial(client.decommission, keep_tokens=keep_tokens, tell=departed.append, tell_name=names.append)
            try:
                await _each(meant, ask, show, "decommissioned")
            finally:
                say_who_had_not_come(names, "nobody ever gets one")
                await _tell_who_left(client, departed, end_claims=end_claims, end_listed=end_listed)

    connection.run(command)


async def _tell_who_left(
    client: EnrolmentOperatorClient,
    departed: list[DepartedOperator],
    *,
    end_claims: bool,
    end_listed: bool,
    stolen: bool = False,
) -> None:
    try:
        try:
            if end_listed:
                await end_listed_of(client, departed)
        finally:  # Of an older service that cannot end entries, claims end all the same.
            if end_claims:
                await end_claims_of(client, departed)
    finally:  # They have left, whatever became of their claims.
        say_who_left(departed, stolen=stolen)


async def _each(
    meant: Meant,
    ask: Callable[..., Awaitable[FoundT]],
    show: Callable[[FoundT], None],
    done_to: str,
    *,
    goes_on: bool = True,
) -> None:
    """Request one, or many in steps, and *show* the results; *goes_on* as in `in_steps`."""
    if meant.single or meant.kind == "certificate":
        for each in meant.which:
            show(await ask(**{meant.kind: each}))
        return

    def of_step(step: Sequence[str]) -> Awaitable[FoundT]:
        return ask(**{f"{meant.kind}s": step})

    refused = await in_steps(meant.which, of_step, show, done_to, goes_on=goes_on)
    check_none_refused(refused, len(meant.which), done_to)


def _row(revoked: RevokedCertificate) -> Sequence[str]:
    return (
        revoked.serial,
        revoked.device,
        revoked.reason,
        shown_time(revoked.revoked_at),
        str(revoked.sequence),
    )


def _released_row(released: ReleasedCertificate) -> Sequence[str]:
    return released.serial, released.device, shown_time(released.released_at), str(released.sequence)
