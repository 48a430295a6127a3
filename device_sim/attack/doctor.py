"""`fleet-sim doctor`: what on this machine would prevent a fleet of the requested size, with the remedy for each.

Theory
------
A load test fails in the same few ways everywhere: too few descriptors, too few ports from one address, too few cores, a
clock that disagrees with the certificates, a missing program. All of these can be checked beforehand.

Rules
-----
1. `examine` judges facts and does no I/O; `look` reads them.
2. A remedy is a command, or says what to buy.
"""

from __future__ import annotations

import os
import resource
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from device_sim.descriptors import SPARE
from device_sim.report import ExitCode
from provisioning.program.hung_line import hung
from provisioning.program.json_output import Json, print_document
from provisioning.program.moments import shown_time

_PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_BACKLOG = Path("/proc/sys/net/core/somaxconn")
_KILOBYTES_A_DEVICE = 60
_CORES = 2
_LISTEN_BACKLOG = 1024
# A clock before the date of this source is wrong, and finds every certificate not yet valid.
_WRITTEN = datetime(2026, 11, 1, tzinfo=UTC)
_SEARCH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/local/sbin"
_SERVERS = {
    "mosquitto": "apt-get install mosquitto",
    "mosquitto_pub": "apt-get install mosquitto-clients",
    "openssl": "apt-get install openssl",
    "nats-server": "apt-get install nats-server",
    "rabbitmq-server": "apt-get install rabbitmq-server",
}


class State(StrEnum):
    """The assessment of one finding."""

    OK = "ok"
    ADVICE = "advice"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked. *remedy* is empty if all is well."""

    what: str
    state: State
    detail: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Machine:
    """What was read from this machine. None: this system does not tell."""

    descriptors: int
    descriptors_allowed: int
    ports: tuple[int, int] | None
    cores: int
    memory_kilobytes: int | None
    backlog: int | None
    now: datetime
    programs: Mapping[str, str | None]


def look() -> Machine:
    """Read the machine."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    ports = _numbers(_PORT_RANGE)
    backlog = _numbers(_BACKLOG)
    return Machine(
        soft,
        hard,
        (ports[0], ports[1]) if ports else None,
        len(os.sched_getaffinity(0)),
        _available_memory(),
        backlog[0] if backlog else None,
        datetime.now(UTC),
        {name: shutil.which(name, path=_SEARCH) for name in _SERVERS},
    )


def examine(machine: Machine, devices: int, sources: int) -> list[Finding]:
    """Judge whether *machine* can carry *devices* connections from *sources* addresses."""
    return [
        _descriptors(machine, devices),
        _ports(machine, devices, sources),
        _memory(machine, devices),
        _cores(machine),
        _backlog(machine),
        _clock(machine),
        *_programs(machine),
    ]


def _descriptors(machine: Machine, devices: int) -> Finding:
    needed = devices + SPARE
    detail = f"{machine.descriptors} descriptors a process, {needed} needed for {devices} devices"
    if machine.descriptors >= needed or machine.descriptors == resource.RLIM_INFINITY:
        return Finding("descriptors", State.OK, detail)
    if machine.descriptors_allowed >= needed or machine.descriptors_allowed == resource.RLIM_INFINITY:
        advice = (
            f"ulimit -n {needed}, for a broker that is started from this shell: run and bench take them by themselves"
        )
        return Finding("descriptors", State.ADVICE, detail, advice)
    return Finding(
        "descriptors",
        State.PROBLEM,
        f"{detail}; {machine.descriptors_allowed} is the most this user may have",
        f"as root: prlimit --pid $$ --nofile={needed}, then start again from that shell",
    )


def _ports(machine: Machine, devices: int, sources: int) -> Finding:
    if machine.ports is None:
        return Finding("ports", State.ADVICE, "this system does not tell its ephemeral ports", "check them by hand")
    low, high = machine.ports
    each = high - low + 1
    detail = f"{each} ports an address x {sources} = {each * sources}, {devices} needed"
    if each * sources >= devices:
        return Finding("ports", State.OK, detail)
    more = -(-devices // each)
    return Finding("ports", State.PROBLEM, detail, f"spread the devices over {more} source addresses: --sources {more}")


def _memory(machine: Machine, devices: int) -> Finding:
    needed = devices * _KILOBYTES_A_DEVICE
    if machine.memory_kilobytes is None:
        return Finding("memory", State.ADVICE, "this system does not tell its free memory", "check it by hand")
    detail = f"{machine.memory_kilobytes // 1024} MB available, about {needed // 1024} MB needed"
    if machine.memory_kilobytes >= needed:
        return Finding("memory", State.OK, detail)
    most = machine.memory_kilobytes // _KILOBYTES_A_DEVICE
    return Finding("memory", State.PROBLEM, detail, f"fewer devices: {most} fit here")


def _cores(machine: Machine) -> Finding:
    detail = f"{machine.cores} usable"
    if machine.cores >= _CORES:
        return Finding("cores", State.OK, detail)
    return Finding(
        "cores",
        State.ADVICE,
        f"{detail}: broker and simulator share it",
        "run them on two machines",
    )


def _backlog(machine: Machine) -> Finding:
    if machine.backlog is None or machine.backlog >= _LISTEN_BACKLOG:
        return Finding("listen backlog", State.OK, f"somaxconn {machine.backlog or 'unknown'}")
    return Finding(
        "listen backlog",
        State.ADVICE,
        f"somaxconn {machine.backlog}: a reconnect storm overflows it",
        "as root: sysctl -w net.core.somaxconn=4096",
    )


def _clock(machine: Machine) -> Finding:
    if machine.now >= _WRITTEN:
        return Finding("clock", State.OK, shown_time(machine.now))
    return Finding(
        "clock",
        State.PROBLEM,
        f"{shown_time(machine.now)} is in the past: every certificate will be not yet valid",
        "as root: timedatectl set-ntp true",
    )


def _programs(machine: Machine) -> list[Finding]:
    return [
        Finding(name, State.OK, path)
        if path is not None
        else Finding(name, State.ADVICE, "not installed; only comparisons and tests need it", _SERVERS[name])
        for name, path in machine.programs.items()
    ]


def doctor(
    devices: Annotated[int, typer.Option("--devices", min=1, help="Number of devices to connect.")] = 10_000,
    sources: Annotated[int, typer.Option("--sources", min=1, help="Number of source addresses.")] = 1,
    as_json: Json = False,
) -> None:
    """Check whether this machine can run a fleet, and show remedies. Exit code 1: it cannot.

    \b
    Example:
      fleet-sim doctor --devices 50000 --sources 2
    """
    findings = examine(look(), devices, sources)
    if as_json:
        print_document([asdict(finding) for finding in findings])
    else:
        _show(findings)
    problems = any(finding.state is State.PROBLEM for finding in findings)
    raise typer.Exit(ExitCode.ERROR if problems else ExitCode.OK)


def _show(findings: Sequence[Finding]) -> None:
    from rich.text import Text  # Late: `device_sim.cli`, rule 1.

    from device_sim.terminal import WordsOnly

    console = WordsOnly(width=None if sys.stdout.isatty() else 200)
    style = {State.OK: "green", State.ADVICE: "yellow", State.PROBLEM: "bold red"}
    for finding in findings:
        said = Text(hung(f"{finding.state.value:8}{finding.what:17}{finding.detail}", sys.stdout, 25))
        said.stylize(style[finding.state], 0, 8)
        if finding.remedy:
            said.append(f"\n{'':25}-> {finding.remedy}")  # In one piece: it may hold a command, to be copied.
        console.print(said, highlight=False, soft_wrap=True)


def _numbers(path: Path) -> list[int]:
    try:
        return [int(word) for word in path.read_text().split()]
    except (OSError, ValueError):
        return []


def _available_memory() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
