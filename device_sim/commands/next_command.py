"""What can be done next with a fleet that was just made."""

from __future__ import annotations

import shlex

from device_sim.credentials.fleet_directory import FleetDirectory
from device_sim.scenario.catalogue import find


def next_command(fleet: FleetDirectory) -> str:
    """Return a command that can be carried out with *fleet*: who has no service of ours revokes nobody."""
    there, scenario = len(fleet.devices), "steady" if fleet.origin.provisioning_url is None else "smoke"
    devices = "" if there >= find(scenario).devices else f"--devices {there} "
    return f"fleet-sim run {scenario} {devices}--fleet {shlex.quote(str(fleet.path))} --broker HOST:PORT"
