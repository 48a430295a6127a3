"""The option ``--reason``: of RFC 5280's reasons only those that the command takes, in help, completion and errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import typer

from provisioning.commands.choice_option import one_of
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.revocation.reasons import REASON_USES, ReasonUse

_ELSEWHERE: Final = {
    ReasonUse.SUSPEND: "a hold is made by suspend",
    ReasonUse.CA: "that is for a CA: fleet-provisioning ca revoke",
}


def reason_option(reasons: Sequence[RevocationReason]) -> Any:
    """Return the option that takes one of *reasons*."""
    return typer.Option(
        metavar="REASON",
        parser=one_of(reasons, _elsewhere),
        autocompletion=lambda: list(reasons),
        help=f"Why: {', '.join(reasons)}.",
    )


def _elsewhere(text: str) -> str:
    """Return where the reason *text* is given, if not here."""
    use = next((use for each, use in REASON_USES.items() if each.casefold() == text.casefold()), None)
    return f"; {_ELSEWHERE[use]}" if use in _ELSEWHERE else ""
