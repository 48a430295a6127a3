"""A smart meter: a household's load over the day.

Theory
------
A household's load is its base, a morning and an evening peak, appliances that switch on for a while, and noise that
remembers the last reading (a first-order autoregression). The mains voltage sags a little under load. Energy only
rises. Each reading is a quarter of an hour after the one before: a day of load curve passes in 96 readings, however
fast the simulator sends them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from device_sim.randomness import Redrawn, randomness_of
from device_sim.telemetry.reading import Reading

_STEP_HOURS = 0.25
_HOURS = 24.0
_NOMINAL_VOLTAGE = 230.0
_SAG_PER_KILOWATT = 0.9
_SOURCE = Redrawn()


def readings(seed: int, device: str) -> Iterator[Reading]:
    """Yield the readings of the meter *device*; see `device_sim.telemetry.reading.Readings`."""
    source = randomness_of(seed, device, "household")
    base = source.lognormvariate(math.log(180.0), 0.4)
    morning = (source.gauss(7.2, 0.6), source.uniform(300.0, 1400.0), 1.1)
    evening = (source.gauss(19.3, 0.9), source.uniform(600.0, 2600.0), 1.9)
    hour = source.choice(range(96)) * _STEP_HOURS
    energy = source.uniform(1e5, 4e6)
    noise = 0.0
    appliance, appliance_left = 0.0, 0
    for number in itertools.count():
        source = _SOURCE.of(seed, device, str(number))
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
        yield Reading(
            {
                "hour": hour,
                "power_w": round(power, 1),
                "energy_wh": round(energy, 1),
                "voltage_v": round(voltage, 2),
            }
        )
        hour = (hour + _STEP_HOURS) % _HOURS


def _peak(hour: float, peak: tuple[float, float, float]) -> float:
    centre, height, width = peak
    distance = min(abs(hour - centre), _HOURS - abs(hour - centre))  # The day wraps around.
    return height * math.exp(-0.5 * (distance / width) ** 2)
