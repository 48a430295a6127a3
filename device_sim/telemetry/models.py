"""The telemetry models by the names that scenarios use."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum

from device_sim.telemetry import machine, smart_meter, tracker
from device_sim.telemetry.reading import Reading, Readings


class Model(StrEnum):
    """What kind of device publishes."""

    SMART_METER = "smart-meter"
    TRACKER = "tracker"
    MACHINE = "machine"

    def readings(self, seed: int, device: str) -> Iterator[Reading]:
        """Yield the readings of *device*, for ever."""
        return _MODELS[self](seed, device)


_MODELS: dict[Model, Readings] = {
    Model.SMART_METER: smart_meter.readings,
    Model.TRACKER: tracker.readings,
    Model.MACHINE: machine.readings,
}
