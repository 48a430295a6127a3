"""A question before something that is for ever: done only where somebody has said yes."""

from __future__ import annotations

import typer

from provisioning.service_command import fail, say


def ask(question: str, *, aside: bool) -> None:
    """Return if the answer is yes; else raise `typer.Exit`, and nothing is done.

    *aside*: ask on stderr, where the result on stdout is for programs. Ctrl-C ends a command here as anywhere: 130.
    """
    try:
        agreed = typer.confirm(question, err=aside)
    except typer.Abort as end:
        say("")  # The question has no end of line.
        if isinstance(end.__context__, KeyboardInterrupt):
            say("fleet-provisioning: stopped, and nothing was done")
            raise typer.Exit(130) from None
        raise fail("nobody answered, and nothing was done: --yes does it without asking") from None
    if not agreed:
        raise fail("nothing was done")
