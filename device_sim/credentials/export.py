"""A fleet as files for other tools, without revoked devices.

Every tool that can give each client its own certificate needs the same three things: a directory of pairs, the trust
anchors, and a list. `clients.csv` is for tools that read rows (JMeter, k6, Locust), `devices/` for those that read a
directory (mqload of this repository).

Rules
-----
1. Private keys are copied with mode 0600 into a directory of mode 0700; nothing is overwritten.
"""

from __future__ import annotations

from pathlib import Path

from device_sim.credentials.client_list import written
from device_sim.credentials.fleet_directory import FleetDirectory, FleetUnusable, write_whole


def export_fleet(fleet: FleetDirectory, output: Path, most: int | None) -> int:
    """Write *fleet* into *output*; return the number of devices. Raises `FleetUnusable`."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FleetUnusable(f"{output} is not empty: name a directory that is, or that does not exist")
    names = fleet.devices[:most]
    if not names:
        raise FleetUnusable(f"{fleet.path} has no device that can be used: {fleet.adding} adds some")
    directory = output / "devices"
    output.mkdir(mode=0o700, parents=True, exist_ok=True)
    output.chmod(0o700)
    directory.mkdir(mode=0o700)
    rows = []
    for name in names:
        credential, group = fleet.credential(name), fleet.entries[name].identity.group or ""
        certificate, key = directory / f"{name}.crt", directory / f"{name}.key"
        write_whole(certificate, credential.certificate_pem)
        write_whole(key, credential.key_pem)
        rows.append((name, fleet.client_id(name), group, certificate, key))
    service = fleet.credential(fleet.service)
    for name, content in (
        ("service.crt", service.certificate_pem),
        ("service.key", service.key_pem),
        ("service.id", f"{fleet.client_id(fleet.service)}\n".encode()),
        ("ca-bundle.crt", fleet.anchors.read_bytes()),
        ("clients.csv", written(rows)),
    ):
        write_whole(output / name, content)
    return len(names)
