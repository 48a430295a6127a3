"""The reason for ending a device without an operator: checked again when the device is locked, and audited."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sqlalchemy.engine import Connection

from provisioning.store.devices import Device


class NoOccasion(Exception):
    """The occasion no longer holds: nothing is done, and what was begun is undone."""


def _always(_connection: Connection, _device: Device) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Occasion:
    """Why a device is ended, and whether that still holds."""

    holds: Callable[[Connection, Device], bool] = _always
    """Whether it still holds; called in the transaction, and may record that it was acted on."""
    facts: Mapping[str, object] = field(default_factory=dict)
    """Additional facts for the audit log."""

    def check(self, connection: Connection, device: Device) -> None:
        """Raise `NoOccasion` unless it still holds."""
        if not self.holds(connection, device):
            raise NoOccasion


OPERATOR_DECISION = Occasion()
