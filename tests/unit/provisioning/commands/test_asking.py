"""A question before what is for ever: what comes of yes, of no, of nobody, and of Ctrl-C at a real terminal."""

from __future__ import annotations

import os
import pty
import select
import signal
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from provisioning.commands.asking import ask

QUESTION = "Do it, for ever?"
REPOSITORY = Path(__file__).parents[4]

app = typer.Typer()


@app.command()
def do_it() -> None:
    """Ask, and do it."""
    ask(QUESTION)
    sys.stdout.write("done\n")


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        ("y\n", 0, "nothing was done\n"),
        ("n\n", 1, "fleet-provisioning: nothing was done\n"),
        ("\n", 1, "fleet-provisioning: nothing was done\n"),
        ("", 1, "\nfleet-provisioning: no answer, and nothing was done: --yes does it without asking\n"),
    ],
    ids=["yes", "no", "as it is proposed", "nobody"],
)
def test_it_is_done_where_somebody_says_yes(answer: str, code: int, said: str) -> None:
    done = CliRunner().invoke(app, input=answer)
    assert done.exit_code == code
    assert done.stderr.endswith(said) is (code != 0), done.stderr
    assert ("done" in done.stdout.split()) is (code == 0)
    assert QUESTION not in done.stdout, "what is asked is no result"


def test_ctrl_c_ends_it_as_it_ends_any_command() -> None:
    code = "from tests.unit.provisioning.commands.test_asking import app; app()"
    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # The tests may run in the background of a shell.
        os.chdir(REPOSITORY)
        os.execv(sys.executable, [sys.executable, "-c", code])  # noqa: S606 - ourselves
    shown, status = b"", None
    try:
        while b"[y/N]: " not in shown:
            shown += os.read(terminal, 4096)
        os.write(terminal, b"\x03")
        try:
            while b"nothing was done" not in shown:
                if select.select([terminal], [], [], 5)[0]:
                    shown += os.read(terminal, 4096)
                else:  # A signal just before a read begins does not end it (this hung once): people press again.
                    os.write(terminal, b"\x03")
        except OSError as end:  # How a terminal says that nobody holds it any more.
            pytest.fail(f"it ended and said {shown!r}: {end}")
        _, status = os.waitpid(pid, 0)
    finally:
        os.close(terminal)
        if status is None:
            os.kill(pid, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(status) == 130
    assert b"\r\nfleet-provisioning: stopped, and nothing was done" in shown
