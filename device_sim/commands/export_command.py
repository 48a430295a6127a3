"""`fleet-sim export`: a fleet as files for other tools (`device_sim.credentials.export`)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from device_sim.late_imports import late_imports


def export(
    fleet: Annotated[Path, typer.Argument(help="The fleet's directory.")],
    output: Annotated[Path, typer.Argument(help="A new or empty directory.")],
    devices: Annotated[
        int | None, typer.Option(min=1, help="Only this many (default: all usable ones).", show_default=False)
    ] = None,
) -> None:
    """Copy a fleet's certificates and keys for other tools.

    \b
    Example:
      fleet-sim export ./meters ./for-others
    """
    with late_imports():
        from device_sim.credentials.export import export_fleet
        from device_sim.credentials.fleet_directory import FleetDirectory
        from device_sim.explanation import explained
        from device_sim.view import View

    view = View()
    with explained(view):
        count = export_fleet(FleetDirectory.read(fleet), output, devices)
    view.result(
        f"{count} devices in {output}\n"
        f"  mosquitto_sub -V 5 -p 8883 --cafile {output}/ca-bundle.crt --cert {output}/service.crt "
        f"--key {output}/service.key -i $(cat {output}/service.id) -t 'fleet/#'\n"
        f"  JMeter, k6, Locust: one row a client in {output}/clients.csv"
    )
