"""Cleans up after a killed test run: ends a server left running in its own directory, and removes that.

    python -I -S outlived.py DIRECTORY PID_FILE        # standard input is the run's, and nothing is ever written there

The end of standard input means that the process that started this has ended, however that happened: then the process
whose number is in PID_FILE is stopped (SIGINT, after ten seconds SIGKILL), and DIRECTORY is removed, after unmounting
anything mounted there. After a normal end both are already gone, and nothing is left to do.

It imports little, and has its own session: killing the run and its children by their group does not reach it.
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
        ):  # Otherwise it has ended, and the number belongs to another process.
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
