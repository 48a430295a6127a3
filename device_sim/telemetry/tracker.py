"""A tracker on a vehicle: its position, speed and battery level.

Theory
------
It drives legs: a heading and a speed for a while, then a turn, sometimes a stop. The position follows from these on a
sphere, ten seconds of driving per reading. The battery drains and is fully charged when at a tenth; a stop with a low
battery is urgent.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from device_sim.randomness import Redrawn, randomness_of
from device_sim.telemetry.reading import Reading

_STEP_SECONDS = 10.0
_METRES_A_DEGREE = 111_320.0
_LOW_BATTERY = 15.0
_EMPTY_BATTERY = 10.0
_FULL_BATTERY = 100.0
_STOPS = 0.25
_SOURCE = Redrawn()


def readings(seed: int, device: str) -> Iterator[Reading]:
    """Yield the readings of the tracker *device*; see `device_sim.telemetry.reading.Readings`."""
    source = randomness_of(seed, device, "journey")
    latitude, longitude = source.uniform(44.0, 54.0), source.uniform(-2.0, 14.0)
    battery = source.uniform(40.0, _FULL_BATTERY)
    heading, speed, left = source.uniform(0.0, 360.0), 0.0, 0
    for number in itertools.count():
        source = _SOURCE.of(seed, device, f"journey {number}")
        if left == 0:
            left = source.randrange(3, 30)
            heading = (heading + source.gauss(0.0, 50.0)) % 360.0
            speed = 0.0 if source.random() < _STOPS else source.uniform(8.0, 36.0)
        left -= 1
        metres = speed * _STEP_SECONDS
        latitude += metres * math.cos(math.radians(heading)) / _METRES_A_DEGREE
        longitude += metres * math.sin(math.radians(heading)) / (_METRES_A_DEGREE * math.cos(math.radians(latitude)))
        battery -= source.uniform(0.01, 0.2)
        if battery < _EMPTY_BATTERY:
            battery = _FULL_BATTERY
        yield Reading(
            {
                "latitude": round(latitude, 6),
                "longitude": round(longitude, 6),
                "speed_mps": round(speed, 1),
                "heading_deg": round(heading, 1),
                "battery_pct": round(battery, 1),
            },
            urgent=speed == 0.0 and battery < _LOW_BATTERY,
        )
