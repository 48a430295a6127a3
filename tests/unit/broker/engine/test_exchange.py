"""What a written batch sets free: many who have come back send again, and others have their turn in between."""

from __future__ import annotations

from broker.mqtt.packets import Publish
from tests.support.stored import StoredBroker
from tests.support.wire import KEPT

DEVICES, MESSAGES = 8, 50


def test_a_fleet_that_comes_back_in_one_batch_sends_again_with_turns_for_others(stored: StoredBroker) -> None:
    names = [f"meter-{number}" for number in range(1, DEVICES + 1)]
    devices = [stored.device(name, **KEPT) for name in names]
    for name, device in zip(names, devices, strict=True):
        device.subscribe(f"fleet/meters/{name}/cmd/#", qos=2)
    backend = stored.service()
    for name in names:
        for number in range(MESSAGES):
            backend.publish(f"fleet/meters/{name}/cmd/x", b"%d" % number, qos=2)
    for device in devices:
        device.connection.lost("CONNECTION_LOST", stored.now)
    stored.held = True
    back = [stored.device(name, **KEPT) for name in names]
    assert not any(each.transport.packets for each in back), "what was under way may not be written yet"
    turn = stored.engine.turn
    batch = stored.journal.take()
    assert batch is not None
    stored.store._apply(batch)
    served: list[int] = []

    def somebody_else() -> None:
        served.append(sum(bool(each.transport.packets) for each in back))
        if served[-1] < DEVICES:
            turn.later(somebody_else)

    turn.later(somebody_else)
    stored.engine.stored(stored.now)
    stored.settle()
    assert served[0] < DEVICES
    assert len(set(served)) > 2
    for each in back:
        packets = each.received()
        assert [packet.payload for packet in packets if isinstance(packet, Publish)] == [
            b"%d" % number for number in range(MESSAGES)
        ]
