"""The arguments of `fleet-sim qualify`; `qualifying` does the work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from device_sim.late_imports import late_imports
from device_sim.qualify.placeholders import PLACEHOLDERS

_HELP = f"Start the device with this command, anew for each stage. {' '.join(f'{{{name}}}' for name in PLACEHOLDERS)}"


def qualify_device(
    exec_: Annotated[str | None, typer.Option("--exec", metavar="CMD", help=_HELP)] = None,
    window: Annotated[
        float, typer.Option(min=1, max=3600, help="Maximum seconds of a stage, from when the device has connected.")
    ] = 20.0,
    parallel: Annotated[int, typer.Option(min=1, max=32, help="Stages at the same time, with --exec.")] = 1,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", help="Only these stages: names, patterns; repeatable, or comma-separated."),
    ] = None,
    show_list: Annotated[bool, typer.Option("--list", help="Show the stages and try none.")] = False,
    client_id: Annotated[str, typer.Option(help="The device's name, in its certificate.")] = "device-under-test",
    host: Annotated[
        str | None,
        typer.Option(
            help="Listen on this numeric address (default: 127.0.0.1, or ::1 without IPv4).", show_default=False
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Listen on this port, without --exec.")] = 8883,
    server_name: Annotated[
        list[str] | None,
        typer.Option(help="A further name or address by which the device knows the server; repeatable."),
    ] = None,
    directory: Annotated[
        Path | None, typer.Option("--dir", help="Keep credentials and the device's output here: a new directory.")
    ] = None,
    ignores_staples: Annotated[
        bool, typer.Option("--ignores-staples", help="The device does not check OCSP staples: tell, do not fail it.")
    ] = False,
    json: Annotated[Path | None, typer.Option("--json", help="Write the verdict to this JSON file.")] = None,
    junit: Annotated[Path | None, typer.Option("--junit", help="Write the verdict to this JUnit XML file.")] = None,
) -> None:
    """Test a device: verification, backoff, redelivery, renewal.

    Exit code 4: it sends data to unauthenticated servers; 1: other;
    3: others hold this machine's cores, and slowness alone decided.

    \b
    Example:
      fleet-sim qualify --exec './device {host} {port} {cafile} {cert} {key}'
      fleet-sim qualify --list
    """
    with late_imports():
        from device_sim.qualify.qualifying import judge_device

    judge_device(
        exec_,
        only,
        show_list,
        client_id,
        host,
        port,
        server_name,
        directory,
        window,
        parallel,
        ignores_staples,
        json,
        junit,
    )
