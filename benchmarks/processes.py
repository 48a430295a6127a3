"""Child processes of a benchmark: started, read, measured, and always ended.

Rules
-----
1. A child is ended by its own process id, first by SIGTERM, then with SIGKILL, however the benchmark ends.
2. A child runs in its own session: Ctrl-C reaches only the benchmark, which then ends its children in order.
3. Every wait has a limit. A child that fails gives the reason: the end of its log is in the error.
4. CPU time is the kernel's clock of the whole process (all threads, also ended ones), in nanoseconds: the same quantity
   as utime + stime of /proc/PID/stat, whose resolution of 10 ms is too coarse for a short run.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

REPOSITORY = Path(__file__).resolve().parent.parent
_POLITE_SECONDS = 10
_CPUCLOCK_SCHED = 2
_LOG_TAIL = 2000


class ChildFailed(RuntimeError):
    """A child process ended, refused or went silent while the benchmark needs it; the text ends with its log."""


class Child:
    """One child process, a context manager; its standard output is read by line, stderr goes to a log file."""

    def __init__(
        self,
        arguments: Sequence[str | Path],
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        cores: frozenset[int] | None = None,
    ) -> None:
        self.name = Path(arguments[0]).name if "-m" not in arguments else f"{arguments[arguments.index('-m') + 1]}"
        self._log = log
        self._buffer = b""
        with log.open("ab") as stderr:
            self._process = subprocess.Popen(
                [os.fspath(argument) for argument in arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=REPOSITORY,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        if cores:
            os.sched_setaffinity(self._process.pid, cores)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process is still running."""
        return self._process.poll() is None

    def read_line(self, seconds: float) -> str:
        """Return the next line of standard output; raise `ChildFailed` if none comes within *seconds*."""
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise self.failed(f"said nothing for {seconds:.0f} s")
                chunk = os.read(self.fileno(), 65536)
                if not chunk:
                    raise self.failed("ended")
                self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line.decode()

    def fileno(self) -> int:
        """Return the descriptor of standard output, for an event loop to watch."""
        stdout = self._process.stdout
        assert stdout is not None  # noqa: S101 - It was asked for above.
        return stdout.fileno()

    def lines_arrived(self) -> list[str]:
        """Return the lines of standard output available from a readable `fileno`; raise `ChildFailed` at its end."""
        chunk = os.read(self.fileno(), 65536)
        if not chunk:
            raise self.failed("ended")
        *lines, self._buffer = (self._buffer + chunk).split(b"\n")
        return [line.decode() for line in lines]

    def write_line(self) -> None:
        """Send an empty line to standard input; raise `ChildFailed` if it is closed."""
        stdin = self._process.stdin
        assert stdin is not None  # noqa: S101 - It was asked for above.
        try:
            stdin.write(b"\n")
            stdin.flush()
        except BrokenPipeError:
            raise self.failed("ended") from None

    def wait(self, seconds: float) -> int:
        """Return the exit code; raise `ChildFailed` if the process does not end within *seconds*."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise self.failed(f"did not end within {seconds:.0f} s") from None

    def stop(self) -> None:
        """End the process if it has not ended yet."""
        if self.running:
            self._process.terminate()
            try:
                self._process.wait(_POLITE_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def failed(self, what: str) -> ChildFailed:
        """Return the error that says *what* happened, with the exit code and the end of the log."""
        if what == "ended":  # Its output closes a moment before it ends.
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(1)
        code = self._process.poll()
        ending = "" if code is None else f" (exit code {code})"
        tail = self._log.read_bytes()[-_LOG_TAIL:].decode(errors="replace").strip()
        return ChildFailed(f"{self.name} {what}{ending}" + (f"; its log ends:\n{tail}" if tail else ""))

    def cpu_seconds(self) -> float:
        """Return the CPU time that the process has used so far (rule 4)."""
        return _cpu_seconds(self.pid)

    def family_cpu_seconds(self) -> float:
        """Return the CPU time of the process and of its living children: a service of several workers."""
        return self._of_family(_cpu_seconds)

    def family_memory_kib(self) -> int:
        """Return the memory of the process and of its living children, shared pages once (Pss), in KiB."""
        return int(self._of_family(lambda pid: _field(Path(f"/proc/{pid}/smaps_rollup"), "Pss:")))

    def _of_family(self, figure: Callable[[int], float]) -> float:
        total = figure(self.pid)
        for child in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split():
            with suppress(OSError):  # It has ended meanwhile.
                total += figure(int(child))
        return total

    def memory_kib(self) -> int:
        """Return the memory that the process occupies now: its resident set (VmRSS), in KiB."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
        raise self.failed("has no memory any more")


def _cpu_seconds(pid: int) -> float:
    # What clock_getcpuclockid(3) computes; Python has no name for it.
    return time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)


def _field(file: Path, name: str) -> int:
    return next(int(line.split()[1]) for line in file.read_text().splitlines() if line.startswith(name))


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Make SIGTERM end the benchmark as Ctrl-C does: through every `with` block, so that no child is left."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        # As SIGINT, because an event loop handles that by cancelling its main task in order.
        signal.raise_signal(signal.SIGINT)

    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # As of `&` in a script: SIGTERM would end nothing.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
