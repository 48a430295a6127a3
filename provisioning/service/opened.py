"""What a process of the service has opened for its parts, and the one clock that they all read."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from provisioning.authorities.authority import OpenAuthority
from provisioning.config import Settings
from provisioning.connections.listening import Listening
from provisioning.service.worker_place import WorkerPlace
from provisioning.store.database import Database
from provisioning.store.serials import SerialNumbers


def utc_now() -> datetime:
    """Return the time: the one clock of the service, handed to everything that needs one."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Opened:
    """What a process of the service has opened: alone, or at a worker's *place*."""

    settings: Settings
    authority: OpenAuthority
    listening: Listening
    place: WorkerPlace | None
    database: Database
    serial_numbers: SerialNumbers

    @property
    def leads(self) -> bool:
        """Whether work for only one of several workers is done here."""
        return self.place is None or self.place.leads

    @property
    def public_url(self) -> str:
        """Where relying parties reach it."""
        configured = self.settings.public_http_url
        return self.listening.http_url if configured is None else str(configured)
