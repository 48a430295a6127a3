"""What stands for ``python`` where a program of ours is forked: `tests.support.programs.forking_python` makes it.

    python -I -S forked_python.py STAND_IN FOLDER PYTHON ARGUMENT...

FOLDER has a socket for each program whose fork server takes orders. Arguments that begin with ``-m PROGRAM``, or with a
module of its package, are ordered there, with this process's environment, folder and standard streams: from then on
this process is what its parent sees of the forked one. Everything else is for the interpreter PYTHON. STAND_IN is the
file that was called: ``sys.executable`` of a forked process, so that those it starts are forked, too.

Rules
-----
1. A signal that a program of ours listens to is sent on to the forked process. Whatever else ends this one, SIGKILL,
   too, kills that: its fork server sees the connection closed. That takes a moment: what a killed process leaves behind
   is for tests that start it afresh.
2. It ends as the forked process has ended: by the same exit code, or the same signal.
3. Whose environment has anything for the interpreter or the loader that the fork server has not is not forked.
4. It imports nothing that takes time: there are hundreds of it.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

SENT_ON = {signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}
LONGEST_ANSWER = 16
"""Bytes: a number in decimal."""


def main(stand_in: str, folder: str, python: str, *arguments: str) -> None:
    if len(arguments) > 1 and arguments[0] == "-m":
        address = os.path.join(folder, arguments[1].partition(".")[0])  # noqa: PTH118 - rule 4
        if os.path.exists(address):  # noqa: PTH110 - rule 4
            signal.pthread_sigmask(signal.SIG_BLOCK, SENT_ON)  # Nobody knows yet whom to send it on to.
            _be_forked(address, {"module": arguments[1], "arguments": arguments[2:], "executable": stand_in})
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SENT_ON)
    os.execv(python, [python, *arguments])  # noqa: S606 - no shell is wanted


def _be_forked(address: str, order: dict[str, object]) -> None:
    """Return if it cannot be forked (rule 3)."""
    import json
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.connect(address)
        order |= {"environment": dict(os.environ), "folder": os.getcwd()}  # noqa: PTH109 - rule 4
        socket.send_fds(server, [json.dumps(order).encode()], [0, 1, 2])
        if said := server.recv(LONGEST_ANSWER):
            _wait_for(server, int(said))


def _wait_for(server: object, pid: int) -> NoReturn:
    def send_on(number: int, _frame: object) -> None:
        try:  # noqa: SIM105 - rule 4
            os.kill(pid, number)
        except ProcessLookupError:
            pass  # It has ended, and so will this one.

    for number in SENT_ON:
        signal.signal(number, send_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SENT_ON)
    said = server.recv(LONGEST_ANSWER)  # type: ignore[attr-defined] # The socket module was imported late.
    if not said:
        sys.exit("the fork server has ended")
    code = int(said)
    if code >= 0:
        os._exit(code)
    if -code not in {signal.SIGKILL, signal.SIGSTOP}:  # Theirs cannot be anything else.
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
    raise AssertionError("it has outlived the signal")


if __name__ == "__main__":
    main(*sys.argv[1:])
