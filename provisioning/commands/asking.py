"""Asks for confirmation before something irreversible, or something that affects many.

The question goes to stderr: stdout is for the result alone. Never ask while a command's event loop runs: then an
interrupt does not reach the wait for the answer.
"""

from __future__ import annotations

import sys

import typer

from provisioning.commands.service_command import fail, say
from provisioning.program import interruption
from provisioning.program.printable import printable


def ask(question: str) -> None:
    """Return if the answer is yes; otherwise raise `typer.Exit`, before anything is done.

    Ctrl-C ends the command as usual, with exit code 130.
    """
    try:  # From the first letter on: who reads the question may interrupt before anybody waits for the answer.
        sys.stderr.write(f"{printable(question)} [y/N]: ")
        sys.stderr.flush()
        answer = sys.stdin.readline()
    except KeyboardInterrupt:
        say("")  # The question has no line end.
        say("fleet-provisioning: stopped, and nothing was done")
        raise typer.Exit(interruption.EXIT_CODE) from None
    if not answer:
        say("")
        raise fail("no answer, and nothing was done: --yes does it without asking")
    if answer.strip().lower() not in {"y", "yes"}:
        raise fail("nothing was done")
