from __future__ import annotations

from device_sim.backend import Backend
from device_sim.behaviour.presence import OFFLINE, ONLINE


def test_what_a_broker_retained_of_the_fleet_s_other_devices_is_expected_and_nothing_else_of_them() -> None:
    backend = Backend("backend", ["meter-1"], bystanders={"meter-1", "meter-2"})
    for topic, payload, unexpected in (
        ("fleet/meters/meter-1/state", ONLINE, 0),
        ("fleet/meters/meter-2/state", ONLINE, 0),
        ("fleet/meters/meter-2/state", OFFLINE, 0),
        ("fleet/meters/meter-2/state", b"hello", 1),
        ("fleet/meters/meter-2/telemetry", b'{"seq":1,"due_ns":1,"sent_ns":1}', 2),
        ("fleet/meters/stranger/state", ONLINE, 3),
    ):
        backend._received(topic, payload)
        assert backend.unexpected == unexpected, topic
    assert backend.presence == {"meter-1": ONLINE}


def test_a_message_that_comes_again_has_one_latency_the_first() -> None:
    told: list[int] = []
    backend = Backend("backend", ["meter-1"], arrived=lambda _device, telemetry, _now: told.append(telemetry.sequence))
    for sequence in (1, 3, 2, 2, 3):
        payload = b'{"seq":%d,"due_ns":1,"sent_ns":1}' % sequence
        backend._received("fleet/meters/meter-1/telemetry", payload)
    assert (told, backend.latency.count, backend.received) == ([1, 3, 2], 3, 5)
