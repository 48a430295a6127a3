"""What a test run leaves if it is killed, ended and removed: a server that runs on in a directory of its own.

    python -I -S outlived.py DIRECTORY PID_FILE        # standard input is the run's, and nothing is ever written there

Whoever started this has ended, however, when its standard input has: then the process whose number is in PID_FILE is
stopped (SIGINT, after ten seconds SIGKILL), and DIRECTORY is removed, and unmounted before if something is mounted
there. In good order both are gone already, and nothing is left to do.

It imports little, and has a session of its own: who kills the run and its children by their group does not get this.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

_PATIENCE = 10.0


def main(directory: Path, pid_file: Path) -> None:
    sys.stdin.buffer.read()
    with contextlib.suppress(OSError, ValueError, IndexError):
        pid = int(pid_file.read_text().split()[0])
        if (
            str(directory) in Path(f"/proc/{pid}/cmdline").read_text()
        ):  # Else it has ended, and the number is another's.
            stop(pid)
    if os.path.ismount(directory):
        subprocess.run(["umount", "--lazy", directory], check=False)
    shutil.rmtree(directory, ignore_errors=True)


def stop(pid: int) -> None:
    """End the process *pid*; return when it has ended."""
    process = os.pidfd_open(pid)
    for number in (signal.SIGINT, signal.SIGKILL):
        signal.pidfd_send_signal(process, number)
        if select.select((process,), (), (), _PATIENCE)[0]:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
