"""What one device publishes: each reading as a message, with all that its receiver needs to judge it.

A payload of the simulator's own carries that itself (`telemetry.payload`); beside one of the scenario's own, it is in
a user property (`telemetry.stamp`).
"""

from __future__ import annotations

import time

from device_sim.device import Device
from device_sim.link.link import UserProperties
from device_sim.scenario.groups import Telemetry
from device_sim.telemetry.payload import encode
from device_sim.telemetry.seal import key_of
from device_sim.telemetry.stamp import stamp_of


class Publications:
    """The telemetry of the device *machine*, in a run with this *seed* and this *mark*."""

    __slots__ = ("_format", "_key", "_machine", "_own", "_readings", "topic_name")

    def __init__(self, machine: Device, telemetry: Telemetry, seed: int, mark: int) -> None:
        self._machine = machine
        self._format = telemetry.format
        self._own = telemetry.own_payload
        self._readings = telemetry.model.readings(seed, machine.name)
        self.topic_name = telemetry.topic_of(machine.name, machine.group)
        self._key = key_of(self.topic_name, mark)

    def next(self, sequence: int, due: float, sent: float) -> tuple[bytes, UserProperties, bool]:
        """Return message *sequence*, due and sent at these times (`time.monotonic`): its payload, its user properties.

        And whether it is urgent: the next one follows sooner then.
        """
        reading = next(self._readings)
        due_ns, sent_ns = int(due * 1e9), int(sent * 1e9)
        if self._own is None:
            payload = encode(reading, sequence, due_ns, sent_ns, self._format, key=self._key)
            return payload, (), reading.urgent
        machine = self._machine
        payload = self._own.filled(machine.name, machine.group, sequence, time.time(), reading.values)
        return payload, stamp_of(payload, sequence, due_ns, sent_ns, self._key), reading.urgent
