"""A user with a CA of their own, what they have of it, and `fleet-sim import` as they call it."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from cryptography import x509
from typer.testing import CliRunner

from device_sim.cli import app
from device_sim.credentials.fleet_directory import FleetDirectory
from tests.support.foreign_ca import ForeignCa


class ImportingUser:
    """A user's directory: a CA, the backend's pair, and what is to be imported."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ca = ForeignCa()
        self.certs = path / "certs"
        self.certs.mkdir()
        self.fleet = path / "fleet"
        (path / "ca.pem").write_text(self.ca.pem)
        self.backend = self.ca.issue("backend-1")
        self.backend.write(path, "backend")

    def imported(self, source: Path | None = None, *options: str, backend: tuple[str, ...] | None = None) -> str:
        """Run the command; return what it says of what is wrong, in one line, "" if nothing is."""
        given = ("--backend-cert", str(self.path / "backend.crt"), "--backend-key", str(self.path / "backend.key"))
        done = CliRunner().invoke(
            app,
            ["import", str(self.fleet), "--from", str(source or self.certs), "--cafile", str(self.path / "ca.pem"),
             *(given if backend is None else backend), *options],
        )  # fmt: skip
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        self.said = " ".join(done.stderr.split())
        self.result = done.stdout
        assert (done.exit_code == 0) == ("fleet-sim: " not in self.said), done.output
        return self.said if done.exit_code else ""

    def listed(self, *rows: Mapping[str, object]) -> Path:
        path = self.path / "mine.csv"
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, list(dict.fromkeys(column for row in rows for column in row)))
            table.writeheader()
            table.writerows(rows)
        return path

    def read(self) -> FleetDirectory:
        return FleetDirectory.read(self.fleet)


def chain_in(fleet: FleetDirectory, name: str) -> list[str]:
    certificates = x509.load_pem_x509_certificates(fleet.credential(name).certificate_pem)
    return [str(each.subject.rfc4514_string()) for each in certificates]
