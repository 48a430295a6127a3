"""A page of commands, run as its reader would: one shell, block after block, against the real programs.

    steps = read_page(Path("docs/verify-it-yourself.md"))
    with Terminal(tmp_path, ports) as terminal:
        for step in steps:
            terminal.follow(step)

Rules
-----
1. A ```sh block is a step. A ```text block right below it is the expected output; any other block is an illustration.
2. The output shown must appear completely, line for line. "…" stands for what differs from run to run: within a line
   for any text, alone on a line for any number of lines.
3. A step without shown output must succeed.
4. The programs are forked (`tests.support.programs`): how they start is tested elsewhere.
5. The page names the standard ports; here each is replaced by a free one, in commands, output and settings alike.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from device_sim.stage.foreign_process import free_port
from tests.support.fork_server import lasting
from tests.support.programs import REPOSITORY, forking_python

STEP_SECONDS = 60
PORTS: dict[int, str | None] = {
    8443: "FLEET_PROVISIONING_PORT",
    8080: "FLEET_PROVISIONING_HTTP_PORT",
    8883: "FLEET_BROKER_PORT",
    1883: None,
    8893: None,
    8099: None,
}
"""Each standard port with the variable that changes it, or none where the page's own words do."""

_PROGRAMS = {"fleet-provisioning": "provisioning", "fleet-broker": "broker", "fleet-sim": "device_sim"}
_FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<content>.*?)^```$", re.MULTILINE | re.DOTALL)
_PORT = re.compile(rf"\b({'|'.join(map(str, PORTS))})\b")
_END = "\x1e"


@dataclass(frozen=True)
class Step:
    """One block of commands, and the lines of output shown to the reader (None: nothing is shown)."""

    line: int
    commands: str
    shown: tuple[str, ...] | None


def read_page(path: Path, heading: str | None = None) -> list[Step]:
    """Return the steps of the page, or only of the part below *heading*."""
    text = path.read_text(encoding="utf-8")
    start, end = (0, len(text)) if heading is None else _section(text, heading)
    blocks = [block for block in _FENCE.finditer(text) if start <= block.start() < end]
    steps = []
    for index, block in enumerate(blocks):
        if block["language"] != "sh":
            continue
        after = blocks[index + 1] if index + 1 < len(blocks) else None
        shown = None
        if after is not None and after["language"] == "text" and not text[block.end() : after.start()].strip():
            shown = tuple(after["content"].splitlines())
        steps.append(Step(text.count("\n", 0, block.start()) + 1, block["content"], shown))
    return steps


def _section(text: str, heading: str) -> tuple[int, int]:
    start = text.index(f"\n{heading}\n")
    level = heading.split(" ", maxsplit=1)[0]
    end = text.find(f"\n{level} ", start + len(heading))
    return start, len(text) if end < 0 else end


def free_ports() -> dict[int, int]:
    """Return a free port for each standard one."""
    chosen: set[int] = set()
    while len(chosen) < len(PORTS):
        chosen.add(free_port())
    return dict(zip(PORTS, chosen, strict=True))


def single_commands(block: str) -> list[str]:
    """Return the commands of *block* one by one, as its shell reads them: bash says where one is complete."""
    found, lines = [], ""
    for line in block.splitlines(keepends=True):
        lines += line
        if line.endswith("\\\n"):
            continue
        checked = subprocess.run(["bash", "-n"], input=lines, capture_output=True, text=True, check=False)
        if checked.returncode == 0 and not checked.stderr:  # Of a here-document without its end it only warns.
            found.append(lines)
            lines = ""
    assert not lines, f"no end of {lines!r}"
    return [command for command in found if command.strip()]


def unlike(shown: tuple[str, ...], output: list[str]) -> str | None:
    """Return how *output* differs from what the page shows; None if it does not."""
    position, skipping = 0, False
    for line in shown:
        if line.strip() == "…":
            skipping = True
            continue
        pattern = re.compile(".*".join(re.escape(part.rstrip()) for part in line.rstrip().split("…")))
        while position < len(output) and not pattern.fullmatch(output[position].rstrip()):
            if not skipping:
                return f"the page shows {line!r}, the command printed {output[position]!r}"
            position += 1
        if position == len(output):
            return f"the page shows {line!r}, which was not printed"
        position, skipping = position + 1, False
    rest = [line for line in output[position:] if line.strip()]
    return None if skipping or not rest else f"the page does not show {rest[0]!r}"


class Terminal:
    """A shell in an empty directory, with the three programs on its path; it ends with everything it started."""

    def __init__(self, directory: Path, ports: Mapping[int, int]) -> None:
        self._directory = directory
        self._ports = ports
        self._shell: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        programs = self._directory / "programs"
        programs.mkdir(parents=True)
        python = shlex.quote(forking_python(*_PROGRAMS.values()))
        # The shell's tools use English; ours know no other language, and are forked in the tests' own environment.
        own = os.environ.get("LC_ALL")
        language = "unset LC_ALL" if own is None else f"LC_ALL={shlex.quote(own)}"
        for program, package in _PROGRAMS.items():
            file = programs / program
            file.write_text(f'#!/bin/sh\n{language}\nexec {python} -m {package} "$@"\n', encoding="utf-8")
            file.chmod(0o755)
        home = self._directory / "home"
        home.mkdir()
        self._shell = subprocess.Popen(
            ["bash", "--noprofile", "--norc", "-s"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=home,
            env={
                **lasting(os.environ),
                "PATH": f"{programs}:{os.environ['PATH']}",
                "HOME": str(home),
                "TMPDIR": str(home),
                "LC_ALL": "C.UTF-8",
                "PYTHONPATH": str(REPOSITORY),
                **{name: str(self._ports[standard]) for standard, name in PORTS.items() if name is not None},
            },
            start_new_session=True,  # So that exactly what this shell started can be ended.
        )
        return self

    def __exit__(self, *_error: object) -> None:
        shell = self._shell
        assert shell is not None
        assert shell.stdin is not None
        assert shell.stdout is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGTERM)
        with contextlib.suppress(BrokenPipeError):
            shell.stdin.close()
        try:
            shell.wait(timeout=STEP_SECONDS)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
            shell.stdout.close()

    def follow(self, step: Step) -> None:
        """Run one step and compare its output with the page."""
        status, output = self._run(self._localised(step.commands))
        printed = "\n".join(output)
        if step.shown is None:
            assert status == 0, f"line {step.line}: exit status {status}\n{step.commands}\n{printed}\n{self.logs()}"
            return
        shown = tuple(self._localised(line) for line in step.shown)
        difference = unlike(shown, output)
        assert difference is None, f"line {step.line}: {difference}\n{step.commands}\n{printed}\n{self.logs()}"

    def succeed(self, command: str, where: str) -> None:
        """Run one command, which must succeed; *where* says which it is, for a failure report."""
        status, output = self._run(self._localised(command))
        printed = "\n".join(output)
        assert status == 0, f"{where}: exit status {status}\n{command}\n{printed}\n{self.logs()}"

    def logs(self) -> str:
        """Return the programs' logs, for a failure report."""
        files = sorted((self._directory / "home").rglob("*.log"))
        return "\n".join(f"--- {file.name}\n{file.read_text(encoding='utf-8')[-3000:]}" for file in files)

    def _localised(self, text: str) -> str:
        return _PORT.sub(lambda found: str(self._ports[int(found[0])]), text)

    def _run(self, commands: str) -> tuple[int, list[str]]:
        assert self._shell is not None
        assert self._shell.stdin is not None
        script = self._directory / "step.sh"
        script.write_text(commands, encoding="utf-8")
        self._shell.stdin.write(f". {script} < /dev/null; printf '{_END}%s{_END}\\n' $?\n".encode())
        self._shell.stdin.flush()
        output, status, _ = self._read_to_end_mark().rsplit(_END, 2)
        return int(status), output.splitlines()

    def _read_to_end_mark(self) -> str:
        assert self._shell is not None
        assert self._shell.stdout is not None
        descriptor = self._shell.stdout.fileno()
        deadline = time.monotonic() + STEP_SECONDS
        collected = b""
        while not collected.endswith(f"{_END}\n".encode()):
            readable, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(descriptor, 65536) if readable else b""
            assert chunk, f"the step did not end\n{collected.decode(errors='replace')}\n{self.logs()}"
            collected += chunk
        return collected.decode(errors="replace")
