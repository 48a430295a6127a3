"""What ends a device that no operator has named: asked again when the device is locked, and said in the audit log."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sqlalchemy.engine import Connection

from provisioning.store.devices import Device


class NoOccasion(Exception):
    """It does not hold any more: nothing is done, and what was begun is undone."""


def _always(_connection: Connection, _device: Device) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Occasion:
    """Why, and whether still."""

    holds: Callable[[Connection, Device], bool] = _always
    """Whether it still does; called in the transaction, which may record that it was followed."""
    facts: Mapping[str, object] = field(default_factory=dict)
    """What the audit log says beside."""

    def check(self, connection: Connection, device: Device) -> None:
        """Raise `NoOccasion` unless it still holds."""
        if not self.holds(connection, device):
            raise NoOccasion


AN_OPERATOR_S_WORD = Occasion()
