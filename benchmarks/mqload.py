"""The load generator mqload.c: compiled when it changed, run one phase at a time.

Theory
------
The generator is C and single-threaded, so that it uses less of the machine than what it measures. It runs with `-S`:
after each phase (connect, closed, resume, messages) it keeps its connections and waits for `Load.proceed`, so that the
server's CPU time and memory are read exactly between two phases, without any of the next one.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from processes import REPOSITORY, Child, ChildFailed

from provisioning.program.descriptors import most_allowed

_SOURCE = Path(__file__).with_name("mqload.c")
_PHASE_SECONDS = 200  # More than the generator's own limits, which end every phase.


class LoadFailed(RuntimeError):
    """The load did not run as intended: a connection was refused or lost, or a phase was not the expected one."""


class NotBuilt(RuntimeError):
    """The load generator cannot be compiled; the text says what to install."""


def build() -> Path:
    """Return the compiled generator; compile it into .build/ if it is missing or older than its source."""
    folder = REPOSITORY / ".build"
    program = folder / "mqload"
    if program.exists() and program.stat().st_mtime > _SOURCE.stat().st_mtime:
        return program
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise NotBuilt("no C compiler found. Remedy, as root: apt-get install gcc libssl-dev")
    folder.mkdir(exist_ok=True)
    # Compiled under another name and renamed: two benchmarks started at once never run a half-written program.
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        fresh = Path(scratch) / "mqload"
        done = subprocess.run(
            [compiler, "-O2", "-o", fresh, _SOURCE, "-lssl", "-lcrypto"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            remedy = "Remedy, as root: apt-get install gcc libssl-dev"
            raise NotBuilt(f"{_SOURCE} does not compile. {remedy}\n{done.stderr}")
        fresh.replace(program)
    return program


class Load(Child):
    """One run of the generator; use as a context manager."""

    def __init__(self, arguments: list[str | Path], log: Path, cores: frozenset[int] | None = None) -> None:
        super().__init__([build(), "-S", *arguments], log, cores=cores)

    def phase(self, name: str) -> dict[str, Any]:
        """Wait for the end of the phase *name* and return its result; raise `LoadFailed` if it went wrong."""
        try:
            result: dict[str, Any] = json.loads(self.read_line(_PHASE_SECONDS))
        except ChildFailed as error:
            raise LoadFailed(str(error)) from error
        if result["phase"] != name:
            raise LoadFailed(f"the load generator is in phase {result['phase']}, where {name} was expected")
        if "wanted" in result and result["up"] != result["wanted"]:
            raise LoadFailed(
                f"{result['up']} of {result['wanted']} connections came up, {result['refused']} were refused"
            )
        return result

    def proceed(self) -> None:
        """Let the next phase begin."""
        self.write_line()


def allow_many_connections(wanted: int) -> None:
    """Raise this process's limit of open files, which children inherit; raise `LoadFailed` if not allowed."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    most = most_allowed()
    if most != resource.RLIM_INFINITY and most < wanted:
        raise LoadFailed(f"{wanted} open files are needed and {most} allowed. Remedy: ulimit -Hn {wanted}, as root")
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def two_cores() -> tuple[frozenset[int], frozenset[int]]:
    """Return two disjoint one-core sets, for the server and the load; raise `LoadFailed` if there is only one core."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise LoadFailed("--pin needs two cores")
    return frozenset(cores[:1]), frozenset(cores[1:2])
