"""The identities of a benchmark's clients: each device of a fleet with its own key, or all with one pair.

Rules
-----
1. With a fleet, a client's identifier is the name in its certificate, as our broker and every strict one require,
   unless the fleet was imported with another.
2. With one pair the identifiers are a prefix and a number, as emqtt-bench makes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from device_sim.bench.plan import InvalidPlan
from device_sim.credentials.fleet_directory import FleetDirectory
from provisioning.pki.tls import CredentialFiles, CredentialPem


@dataclass(frozen=True, slots=True)
class Party:
    """One client to create. *credential* is None if the context has one for all."""

    number: int
    client_id: str
    group: str
    credential: CredentialPem | None


class Keyring(Protocol):
    """Where the clients' identities come from."""

    @property
    def anchors(self) -> Path:
        """Their trust anchors."""

    @property
    def common(self) -> CredentialFiles | None:
        """The credential shared by all, if they have none of their own."""

    def parties(self, count: int) -> list[Party]:
        """Return *count* clients to create. Raises `InvalidPlan`."""


@dataclass(frozen=True, slots=True)
class FleetKeyring:
    """The devices of a fleet; with *service*, that many instances of its service instead."""

    fleet: FleetDirectory
    service: bool = False

    common = None

    @property
    def anchors(self) -> Path:
        """Their trust anchors."""
        return self.fleet.anchors

    def parties(self, count: int) -> list[Party]:
        """Return *count* clients to create."""
        fleet = self.fleet
        if self.service:
            credential, service = fleet.credential(fleet.service).pem, fleet.client_id(fleet.service)
            return [Party(number, f"{service}-{number}", "", credential) for number in range(1, count + 1)]
        names = fleet.devices
        if len(names) < count:
            raise InvalidPlan(f"-c {count}: {fleet.path} has {len(names)} usable devices; {fleet.adding} makes more")
        return [
            Party(number, fleet.client_id(name), fleet.entries[name].identity.group or "", fleet.credential(name).pem)
            for number, name in enumerate(names[:count], 1)
        ]


@dataclass(frozen=True, slots=True)
class OnePair:
    """All clients with one certificate, or with none if the broker requires none."""

    anchors: Path
    common: CredentialFiles | None
    prefix: str
    first: int

    def parties(self, count: int) -> list[Party]:
        """Return *count* clients to create."""
        return [Party(number, f"{self.prefix}{number}", "", None) for number in range(self.first, self.first + count)]
