"""A machine with alarms: temperature and vibration that follow its load, and what happens when they are too high.

Theory
------
The load changes in shifts. Temperature follows it slowly, vibration at once and with noise. Now and then a bearing
begins to fail: its vibration grows until it is replaced. The machine raises an alarm above a limit and clears it well
below: with a single limit it would flicker. While an alarm is active, readings are urgent.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from device_sim.randomness import Redrawn, randomness_of
from device_sim.telemetry.reading import Reading

_AMBIENT = 22.0
_HEAT_OF_FULL_LOAD = 58.0
_INERTIA = 0.92
_HOT, _COOL_AGAIN = 76.0, 70.0
_SHAKING, _STILL_AGAIN = 9.0, 5.0
_FAILURES = 0.01
_REPAIRED_AFTER = 40
_SOURCE = Redrawn()


def readings(seed: int, device: str) -> Iterator[Reading]:
    """Yield the readings of the machine *device*; see `device_sim.telemetry.reading.Readings`."""
    source = randomness_of(seed, device, "machine")
    load, shift = source.uniform(0.2, 0.9), 0
    temperature = _AMBIENT + load * _HEAT_OF_FULL_LOAD
    wear, failing = 0.0, 0
    alarm: str | None = None
    for number in itertools.count():
        source = _SOURCE.of(seed, device, f"machine {number}")
        if shift == 0:
            shift, load = source.randrange(20, 120), source.uniform(0.1, 1.0)
        shift -= 1
        if failing:
            failing -= 1
            wear = wear + source.uniform(0.0, 0.6) if failing else 0.0
        elif source.random() < _FAILURES:
            failing = _REPAIRED_AFTER
        temperature = _INERTIA * temperature + (1 - _INERTIA) * (_AMBIENT + load * _HEAT_OF_FULL_LOAD)
        temperature += source.gauss(0.0, 0.2)
        vibration = max(0.0, 1.0 + 2.5 * load + wear + source.gauss(0.0, 0.3))
        alarm = _alarm(alarm, temperature, vibration)
        yield Reading(
            {
                "load_pct": round(load * 100, 1),
                "temperature_c": round(temperature, 2),
                "vibration_mm_s": round(vibration, 2),
                "alarm": alarm,
            },
            urgent=alarm is not None,
        )


def _alarm(standing: str | None, temperature: float, vibration: float) -> str | None:
    if vibration > (_STILL_AGAIN if standing == "vibration" else _SHAKING):
        return "vibration"
    if temperature > (_COOL_AGAIN if standing == "temperature" else _HOT):
        return "temperature"
    return None
