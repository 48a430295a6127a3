"""This repository's broker with its own files, for benchmarks that restart it or change it while it runs.

It has a benchmark's PKI, a CRL as its source of revocations, its store on disk, and an admin socket.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from peers import packages_of, ready_line
from pki import BenchPki
from processes import Child

from broker.admin.client import AdminClient

LIMITS = "[limits]\n"
"""The default limits, although a benchmark's fleet comes from one address; a benchmark may append some."""


@dataclass(frozen=True, slots=True)
class OwnBroker:
    """How to run it, any number of times, on the same *port* and with the same state in *folder*."""

    pki: BenchPki
    folder: Path
    port: int
    compiled: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)
    """Additional lines of its file."""
    launcher: tuple[str | Path, ...] = ("-m", "broker")

    @property
    def configuration(self) -> Path:
        """The file with its settings."""
        return self.folder / "broker.toml"

    def write_configuration(self, limits: str = LIMITS, **settings: str) -> None:
        """Write its file; *settings* are TOML values."""
        written = {
            "host": '"127.0.0.1"',
            "port": str(self.port),
            "log_level": '"warning"',
            "state_dir": f'"{self.folder / "state"}"',
            "certfile": f'"{self.pki.server.certificate}"',
            "keyfile": f'"{self.pki.server.key}"',
            "cafile": f'"{self.pki.trust_anchors}"',
            "crlfile": f'["{self.pki.crls}"]',
            **self.settings,
            **settings,
        }
        self.configuration.write_text("".join(f"{name} = {value}\n" for name, value in written.items()) + limits)

    def start(self, environment: Mapping[str, str] | None = None) -> Child:
        """Start it and return it once it accepts connections; raise `ChildFailed`."""
        process = Child(
            [sys.executable, "-P", *self.launcher, "run", "--config", self.configuration],
            self.folder / "broker.log",
            environment={**(environment or {}), "PYTHONPATH": str(packages_of(compiled=self.compiled))},
        )
        try:
            ready_line(process, "fleet-broker")
        except BaseException:
            process.stop()
            raise
        return process

    def admin(self) -> AdminClient:
        """Return a client of its admin socket."""
        return AdminClient.at_socket(self.folder / "state" / "admin.sock")
