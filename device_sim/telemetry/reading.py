"""One reading of a device: named values, and whether it is urgent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

Value = float | str | None


class Reading(NamedTuple):
    """What a device measured. An *urgent* one is followed by the next after a tenth of the ordinary interval."""

    values: dict[str, Value]
    urgent: bool = False


class Readings(Protocol):
    """A telemetry model: the readings of a device, for ever.

    No clock and no global randomness: reading *n* depends on the seed, the device's name and *n* alone.
    """

    def __call__(self, seed: int, device: str) -> Iterator[Reading]:
        """Yield the readings of *device*."""
