"""The command line of `fleet-sim`: arguments in, exit code out (`explanation` turns errors into words).

Exit codes: 0 everything holds; 1 an error, or a check that failed; 2 wrong usage; 3 the machine was too slow to judge;
4 a security check failed; 130 and 143 stopped by SIGINT or SIGTERM.

Rules
-----
1. A command's file has its arguments, and is imported when the command is named; the work is in a module of its own,
   which is imported when it is called (`late_imports`). Importing the whole simulator takes a second, and neither
   ``--help`` nor shell completion should wait for it, nor one command for another (`tests/unit/test_command_lines.py`).
"""

from __future__ import annotations

import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from device_sim.late_imports import late_imports
from device_sim.unread import let_standard_error_be_unread
from provisioning.program import command_line, interruption
from provisioning.program.build import build_identity
from provisioning.program.command_group import command_group
from provisioning.program.json_output import Json, print_document
from provisioning.program.version import product_version, version_and_build
from provisioning.program.version_option import version_option


def about(*, version: Annotated[bool, version_option("fleet-sim")] = False) -> None:
    """Fleets of simulated devices, each with its own key and certificate."""
    del version  # Handled already, if it was given.


def show_version(as_json: Json = False) -> None:
    """Print version and build."""
    if as_json:
        said = {"name": "fleet-sim", "version": product_version(), "build": build_identity()}
        print_document(said)
        return
    typer.echo(f"fleet-sim {version_and_build()}")


def demo(
    devices: Annotated[int, typer.Option(min=2, max=5000, help="How many devices.")] = 200,
    seconds: Annotated[float, typer.Option(min=1, max=3600, help="How long to stream telemetry.")] = 15.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same readings and random choices.")] = 42,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep service and broker running afterwards, until Ctrl-C.")
    ] = False,
    directory: Annotated[
        Path | None,
        typer.Option("--dir", help="Work in this empty directory and keep it (default: a temporary one)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")] = False,
) -> None:
    """Enrol a fleet, stream, revoke, and attack: the whole product on loopback, with a verdict at the end.

    \b
    Example:
      fleet-sim demo --devices 50 --seconds 5
    """
    with late_imports():
        from device_sim.demo.demonstration import demonstrate

    demonstrate(devices, seconds, seed, keep, directory, as_json)


app = command_group(
    callback=about,
    late={
        "demo": demo,
        "run": "device_sim.commands.run_command:run_scenario",
        "attack": "device_sim.attack.command:attack",
        "revocation": "device_sim.attack.command:revocation",
        "delivery": "device_sim.attack.command:delivery",
        "attack-table": "device_sim.attack.command:attack_table",
        "qualify": "device_sim.qualify.command:qualify_device",
        "doctor": "device_sim.attack.doctor:doctor",
        "version": show_version,
        "enrol": "device_sim.commands.enrol_command:enrol",
        "import": "device_sim.commands.import_command:import_fleet",
        "export": "device_sim.commands.export_command:export",
        "scenarios": "device_sim.commands.run_command:scenarios",
        "ctl": "device_sim.commands.ctl_command:ctl_app",
        "report": "device_sim.commands.report_command:report",
        "bench": "device_sim.bench.command:bench",
    },
)


def main() -> NoReturn:
    """Run the command line and exit."""
    let_standard_error_be_unread()
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.encoding.lower() != "utf-8":
        # Latin-1 has no tick mark, and the verdict is more than its mark.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        command_line.run(app, "fleet-sim")
    except KeyboardInterrupt:  # While the commands are being set up: none has begun.
        sys.exit(interruption.EXIT_CODE)
