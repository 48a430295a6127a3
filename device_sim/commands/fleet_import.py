"""What `fleet-sim import` does: make a fleet of a user's own certificates, or continue one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import typer

from device_sim.commands.given_anchors import given_anchors
from device_sim.commands.next_command import next_command
from device_sim.credentials.credential_file import UnusableCredential
from device_sim.credentials.fleet_directory import FleetDirectory, FleetUnusable, Origin
from device_sim.credentials.importing import Examination, Import, take
from device_sim.explanation import explained
from device_sim.interruption import Interruption, run
from device_sim.view import Progress, View
from provisioning.pki.identity import check_name
from provisioning.program.given_file import SECRET_BYTES, contents_of

_ANCHORS = "name the CA certificates that verify the broker"
_MOST_SAID = 5


def import_or_explain(
    directory: Path,
    source: Path,
    cafile: Path,
    backend_cert: Path,
    backend_key: Path | None,
    backend_id: str | None,
    group: str | None,
    passphrase_file: Path | None,
    skip: Sequence[str],
) -> None:
    """Copy the certificates and keys in *source* into the fleet in *directory*. Raises `typer.Exit`."""
    view = View()
    with explained(view, f"Run the same command again to continue in {directory}"):
        if group is not None:
            check_name("group", group)
        if FleetDirectory.exists(directory) and not FleetDirectory.read(directory).origin.imported:
            raise FleetUnusable(f"{directory} was enrolled: import into a directory of its own")
        anchors = given_anchors(cafile, _ANCHORS)
        examination = Examination(anchors, _passphrase(passphrase_file), group)
        is_directory = source.is_dir()
        if skip and not is_directory:
            raise typer.BadParameter("--skip is for a directory: remove the row from the CSV file")

        async def story(_: Interruption) -> tuple[FleetDirectory, int]:
            examination.add_backend(backend_cert, backend_key, backend_id)
            begun = time.monotonic()
            async with view.watching(
                lambda: Progress("examined", examination.seen, examination.there, time.monotonic() - begun)
            ):
                await (examination.search(source, directory, skip) if is_directory else examination.read(source))
            parties = examination.parties
            fleet = _fleet(directory, anchors, parties)
            started, done, changed = time.monotonic(), 0, 0

            def kept(has_changed: bool) -> None:
                nonlocal done, changed
                done, changed = done + 1, changed + has_changed

            async with view.watching(lambda: Progress("copied", done, len(parties), time.monotonic() - started)):
                await take(fleet, parties, anchors, kept)
            return fleet, changed

        fleet, changed = run(story)
        for what, those in (("left out", examination.left_out), ("column not used", examination.unused)):
            for each in those[:_MOST_SAID]:
                view.said(f"{what}: {each}")
            if len(those) > _MOST_SAID:
                view.said(f"{what}: and {len(those) - _MOST_SAID} more")
        if not changed:
            view.said("nothing has changed")
        view.result(f"{len(fleet.devices)} devices in {directory}; next: {next_command(fleet)}")


def _fleet(directory: Path, anchors: str, parties: Sequence[Import]) -> FleetDirectory:
    service = parties[0].held.identity.name
    if not FleetDirectory.exists(directory):
        return FleetDirectory.create(directory, Origin(imported=True), anchors, service)
    return FleetDirectory.read(directory)


def _passphrase(file: Path | None) -> bytes | None:
    if file is None:
        return None
    passphrase = contents_of(file, SECRET_BYTES).rstrip(b"\r\n")
    if not passphrase:
        raise UnusableCredential(f"--passphrase-file {file} is empty: put the passphrase there, or leave it out")
    return passphrase
