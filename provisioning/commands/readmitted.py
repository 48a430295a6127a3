"""What is said of tokens that were made for devices which are here already: whoever has one can take its place.

The names may come from a file that somebody else has written: who is revoked, and why, its reader need not know.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from provisioning.commands.service_command import say
from provisioning.program.counted import counted

if TYPE_CHECKING:
    from provisioning.client.operator_answers import IssuedToken

_MOST: Final = 5
"""Names that are told; of more only how many there are."""


def say_who_is_here(tokens: Sequence[IssuedToken]) -> None:
    """Say for which devices among *tokens* they undo a revocation, buy nothing yet, or are good for another key."""
    named = [(each.device, each.device_state) for each in tokens if each.device is not None]
    revoked = [device for device, state in named if state == "revoked"]
    suspended = [device for device, state in named if state == "suspended"]
    here = [device for device, state in named if state == "active"]
    if revoked:
        undo = f"if not meant: token void --device {revoked[0] if len(revoked) == 1 else 'NAME'}"
        say(f"fleet-provisioning: {_who(revoked)} revoked: with its token each is admitted again; {undo}")
    if suspended:
        first = "resume it" if len(suspended) == 1 else "resume them"
        say(f"fleet-provisioning: {_who(suspended)} suspended, and refused with any token: {first} first")
    if here and len(tokens) > 1:  # Who names a single one knows what for.
        say(f"fleet-provisioning: {_who(here)} enrolled already: with its token each may have another key")


def _who(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MOST]) + (", …" if len(names) > _MOST else "")
    return f"{counted(len(names), 'device')} ({shown}) {'is' if len(names) == 1 else 'are'}"
