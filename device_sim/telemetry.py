"""What a device measures: the readings of a smart meter, the same for the same seed.

Theory
------
A household's load is its base, a morning and an evening peak, appliances that switch on for a while, and noise that
remembers the last reading (a first-order autoregression). The mains voltage sags a little under load. Energy only
rises. Each reading is a quarter of an hour after the one before: a day of load curve passes in 96 readings, however
fast the simulator sends them.

Rules
-----
1. No clock, no global randomness: reading *n* of a device depends on the seed, the device's name and *n* alone.
   Changing the size of the fleet does not change device 17.
2. The times are not part of the reading; whoever sends passes them to `encode`.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

_STEP_HOURS = 0.25
_HOURS = 24.0
_NOMINAL_VOLTAGE = 230.0
_SAG_PER_KILOWATT = 0.9


@dataclass(frozen=True, slots=True)
class Reading:
    """One reading of a meter, at *hour* of its day."""

    hour: float
    power_w: float
    energy_wh: float
    voltage_v: float


@dataclass(frozen=True, slots=True)
class Telemetry:
    """A reading as it was received: which one, when it was due and when sent (`time.monotonic_ns`), what it says."""

    sequence: int
    due_ns: int
    sent_ns: int
    reading: Reading


class UnreadableTelemetry(ValueError):
    """The payload is not what `encode` makes."""


def randomness_of(seed: int, device: str, purpose: str = "") -> random.Random:
    """Return the device's own source of randomness for one *purpose*."""
    return random.Random(f"{seed}:{device}:{purpose}")  # noqa: S311 - repeatable by intent


_READING_SOURCE = random.Random()  # noqa: S311 - repeatable by intent


def readings(seed: int, device: str) -> Iterator[Reading]:
    """Yield the readings of *device*, for ever."""
    source = randomness_of(seed, device, "household")
    base = source.lognormvariate(math.log(180.0), 0.4)
    morning = (source.gauss(7.2, 0.6), source.uniform(300.0, 1400.0), 1.1)
    evening = (source.gauss(19.3, 0.9), source.uniform(600.0, 2600.0), 1.9)
    hour = source.choice(range(96)) * _STEP_HOURS
    energy = source.uniform(1e5, 4e6)
    noise = 0.0
    appliance, appliance_left = 0.0, 0
    for number in itertools.count():
        # One source for all devices, seeded for each reading: a source of its own would be 2.5 KB a device.
        source = _READING_SOURCE
        source.seed(f"{seed}:{device}:{number}")
        noise = 0.7 * noise + source.gauss(0.0, 0.08 * base)
        if appliance_left:
            appliance_left -= 1
        elif source.random() < 0.06:  # noqa: PLR2004 - a dishwasher, a kettle, a car: about six times a day
            appliance, appliance_left = source.uniform(400.0, 2200.0), source.randrange(1, 6)
        else:
            appliance = 0.0
        power = max(20.0, base + _peak(hour, morning) + _peak(hour, evening) + appliance + noise)
        energy += power * _STEP_HOURS
        voltage = _NOMINAL_VOLTAGE - _SAG_PER_KILOWATT * power / 1000 + source.gauss(0.0, 0.4)
        yield Reading(hour, round(power, 1), round(energy, 1), round(voltage, 2))
        hour = (hour + _STEP_HOURS) % _HOURS


def _peak(hour: float, peak: tuple[float, float, float]) -> float:
    centre, height, width = peak
    distance = min(abs(hour - centre), _HOURS - abs(hour - centre))  # The day is a circle.
    return height * math.exp(-0.5 * (distance / width) ** 2)


def encode(reading: Reading, sequence: int, due_ns: int, sent_ns: int) -> bytes:
    """Return the payload that carries *reading*."""
    fields = {
        "seq": sequence,
        "due_ns": due_ns,
        "sent_ns": sent_ns,
        "hour": reading.hour,
        "power_w": reading.power_w,
        "energy_wh": reading.energy_wh,
        "voltage_v": reading.voltage_v,
    }
    return json.dumps(fields, separators=(",", ":")).encode()


def decode(payload: bytes) -> Telemetry:
    """Return what *payload* carries; raise `UnreadableTelemetry` if it is not ours."""
    try:
        fields = json.loads(payload)
        reading = Reading(
            float(fields["hour"]), float(fields["power_w"]), float(fields["energy_wh"]), float(fields["voltage_v"])
        )
        return Telemetry(int(fields["seq"]), int(fields["due_ns"]), int(fields["sent_ns"]), reading)
    except (ValueError, KeyError, TypeError) as error:
        raise UnreadableTelemetry(f"payload {payload[:80]!r} is no telemetry: {error!r}") from error
