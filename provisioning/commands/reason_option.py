"""The option ``--reason``: of RFC 5280's reasons only those that the command takes, in help, completion and errors."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

import typer

from provisioning.pki.revocation import RevocationReason
from provisioning.revocation.reasons import REASON_USES, ReasonUse

_ELSEWHERE: Final = {
    ReasonUse.SUSPEND: "a hold is made by suspend",
    ReasonUse.CA: "that is for a CA: fleet-provisioning ca revoke",
}


def reason_option(reasons: Collection[RevocationReason]) -> Any:
    """Return the option that takes one of *reasons*, in upper or lower case."""
    names = ", ".join(reasons)
    by_name = {reason.casefold(): reason for reason in reasons}

    def read(text: str) -> RevocationReason:
        reason = by_name.get(text.casefold())
        if reason is None:
            other = next((use for each, use in REASON_USES.items() if each.casefold() == text.casefold()), None)
            hint = f"; {_ELSEWHERE[other]}" if other in _ELSEWHERE else ""
            raise typer.BadParameter(f"{text!r} is not one of {names}{hint}")
        return reason

    return typer.Option(metavar="REASON", parser=read, autocompletion=lambda: list(reasons), help=f"Why: {names}.")
