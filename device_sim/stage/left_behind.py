"""What a program that has ended has left behind in its session, and only that: its number may be another's by now.

Theory
------
A process that has ended keeps its number until its parent has taken note, and after that as long as its session has a
member. If it has none the number is free: with 32,768 of them, as Linux has by default on small machines, somebody else
has it after some minutes on a busy one, perhaps as the leader of a session of its own, which a signal to that number
would end. So members are looked for one by one, and if there is a leader the session is not the program's.

Rules
-----
1. Called when the program itself has ended and its parent knows it. Before that its number is its own: `os.killpg`.
2. A signal goes through a descriptor of the very process that was looked at.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

_PROCESSES = Path("/proc")
_ROUNDS = 10
"""How often is looked again for what has been started meanwhile."""
_ENDED = frozenset("ZX")


def left_behind(session: int) -> list[int]:
    """Return the processes in *session* that live, if its leader does not."""
    if (_PROCESSES / str(session)).exists():
        return []  # It is another's.
    there = [int(each.name) for each in _PROCESSES.iterdir() if each.name.isdecimal()]
    return [number for number in there if _is_in(number, session)]


def end_left_behind(session: int) -> None:
    """Kill what is left of *session*, whose leader was ours and has ended."""
    for _ in range(_ROUNDS):
        left = left_behind(session)
        if not left:
            return
        for number in left:
            with contextlib.suppress(ProcessLookupError):
                process = os.pidfd_open(number)
                try:
                    if _is_in(number, session):
                        signal.pidfd_send_signal(process, signal.SIGKILL)
                finally:
                    os.close(process)


def _is_in(number: int, session: int) -> bool:
    try:
        stat = (_PROCESSES / str(number) / "stat").read_text(errors="replace")
    except OSError:
        return False  # It has ended since.
    state, _parent, _group, its_session = stat.rpartition(")")[2].split()[:4]
    return int(its_session) == session and state not in _ENDED
