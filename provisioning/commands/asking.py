"""A question before something that is for ever, or of many: done only where somebody has said yes.

It is asked on stderr: stdout is the result's, all of it. Not while a command's loop runs: then an interrupt does not
reach who waits for an answer.
"""

from __future__ import annotations

import sys

import typer

from provisioning.commands.service_command import fail, say
from provisioning.program.printable import printable


def ask(question: str) -> None:
    """Return if the answer is yes; else raise `typer.Exit`, and nothing is done.

    Ctrl-C ends a command here as anywhere: 130.
    """
    try:  # From the first letter on: who reads the question may interrupt before anybody waits for the answer.
        sys.stderr.write(f"{printable(question)} [y/N]: ")
        sys.stderr.flush()
        answer = sys.stdin.readline()
    except KeyboardInterrupt:
        say("")  # The question has no end of line.
        say("fleet-provisioning: stopped, and nothing was done")
        raise typer.Exit(130) from None
    if not answer:
        say("")
        raise fail("no answer, and nothing was done: --yes does it without asking")
    if answer.strip().lower() not in {"y", "yes"}:
        raise fail("nothing was done")
