"""A program on its own terminal, which the test can close."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.support.broker_process import wait_until


@contextlib.contextmanager
def on_a_terminal(
    arguments: list[str], environment: Mapping[str, str], log: Path, directory: Path | None = None
) -> Iterator[tuple[int, int]]:
    """Run a program on its own terminal, with stderr in *log*; yield its process number and the terminal.

    It runs in *directory*, if that is given.
    """
    pid, terminal = pty.fork()
    if pid == 0:
        if directory is not None:
            os.chdir(directory)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # The tests may run under nohup.
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT, 0o600), 2)
        os.execve(arguments[0], arguments, environment)  # noqa: S606 - no shell is wanted
    try:
        yield pid, terminal
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def first_line(terminal: int) -> bytes:
    """Return the program's output once its first line is complete."""
    said = b""
    while b"\n" not in said:
        said += os.read(terminal, 4096)
    return said


def exit_code(pid: int) -> int:
    """Return the exit code as soon as the program has ended."""

    def ended() -> tuple[int] | None:
        number, status = os.waitpid(pid, os.WNOHANG)
        return (os.waitstatus_to_exitcode(status),) if number else None

    (code,) = wait_until(ended, "the program's end")
    return int(code)
