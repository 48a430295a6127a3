from __future__ import annotations

import asyncio

import cbor2
import pytest

from device_sim.behaviour.presence import OFFLINE, ONLINE
from device_sim.fleet.backend import Backend
from device_sim.telemetry.payload import Format, encode
from device_sim.telemetry.reading import Reading
from device_sim.telemetry.seal import key_of, sealed_object

MARK = 42
TOPIC = "fleet/meters/meter-1/telemetry"


def receive(backend: Backend, topic: str, payload: bytes) -> None:
    """Let *payload*, if it is an object, arrive with its seal."""
    sealed = sealed_object(payload, key_of(topic, MARK)) if payload.startswith(b"{") else payload
    backend._received(topic, sealed)


def reading(form: Format, topic: str = TOPIC, mark: int = MARK) -> bytes:
    return encode(Reading({"power_w": 512.5}), 1, 7, 9, form, key=key_of(topic, mark))


def test_what_a_broker_retained_of_the_fleet_s_other_devices_is_expected_and_nothing_else_of_them() -> None:
    backend = Backend("backend", ["meter-1"], mark=MARK, bystanders={"meter-1", "meter-2"})
    for topic, payload, unexpected in (
        ("fleet/meters/meter-1/state", ONLINE, 0),
        ("fleet/meters/meter-2/state", ONLINE, 0),
        ("fleet/meters/meter-2/state", OFFLINE, 0),
        ("fleet/meters/meter-2/state", b"hello", 1),
        ("fleet/meters/meter-2/telemetry", b'{"seq":1,"due_ns":1,"sent_ns":1}', 2),
        ("fleet/meters/stranger/state", ONLINE, 3),
        ("fleet/meters/meter-1/state", b"hello", 4),
    ):
        backend._received(topic, payload)
        assert backend.unexpected == unexpected, topic
    assert backend.presence == {"meter-1": ONLINE}


def test_a_message_that_comes_again_has_one_latency_the_first() -> None:
    told: list[int] = []
    backend = Backend(
        "backend", ["meter-1"], mark=MARK, arrived=lambda _device, telemetry, _now: told.append(telemetry.sequence)
    )
    for sequence in (1, 3, 2, 2, 3):
        receive(backend, "fleet/meters/meter-1/telemetry", b'{"seq":%d,"due_ns":1,"sent_ns":1}' % sequence)
    assert (told, backend.latency.count, backend.received) == ([1, 3, 2], 3, 5)


def test_what_else_fills_a_queue_for_the_receiver_is_counted_and_telemetry_is_not() -> None:
    backend = Backend("backend", ["meter-1"], mark=MARK, bystanders={"meter-2"}, siblings={"backend-2"})
    receive(backend, TOPIC, b'{"seq":1,"due_ns":1,"sent_ns":1}')
    assert (backend.received, backend.besides) == (1, 0)
    for number, (topic, payload) in enumerate(
        (
            ("fleet/meters/meter-1/state", ONLINE),
            ("fleet/meters/meter-2/state", ONLINE),
            ("fleet/meters/meter-1/cmd/reboot", b"{}"),
            ("fleet/meters/meter-1/ack", b'{"id":"backend-2-1","status":"done"}'),
            ("elsewhere", b""),
        ),
        1,
    ):
        receive(backend, topic, payload)
        assert backend.besides == number, topic


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        ("telemetry", b'{"seq":1e999,"due_ns":1,"sent_ns":1}'),
        ("telemetry", b'{"seq":1,"due_ns":1e999,"sent_ns":1}'),
        ("telemetry", b'{"seq":1,"due_ns":1,"sent_ns":-1%s}' % (b"0" * 400)),
        ("telemetry", b'{"seq":1%s,"due_ns":1,"sent_ns":1}' % (b"0" * 400)),
        ("telemetry", cbor2.dumps({"seq": 1, "due_ns": 10**400, "sent_ns": 1})),
        ("telemetry", b'{"a":' * 10_000),
        ("ack", b"[" * 100_000),
        ("ack", b'{"id":' + b"[" * 100_000),
    ],
    ids=range(8),
)
def test_nobody_ends_a_run_by_what_he_publishes(kind: str, payload: bytes) -> None:
    told: list[float] = []
    backend = Backend(
        "backend", ["meter-1"], mark=MARK, arrived=lambda _device, telemetry, _now: told.append(telemetry.due_ns / 1)
    )
    backend._received(f"fleet/meters/meter-1/{kind}", payload)
    assert (backend.unexpected, backend.received, backend.latency.count, told) == (1, 0, 0, [])


@pytest.mark.parametrize("form", Format)
def test_what_is_not_as_it_was_sent_is_altered_and_not_received(form: Format) -> None:
    told: list[str] = []
    backend = Backend(
        "backend", ["meter-1", "meter-2"], mark=MARK, arrived=lambda device, _telemetry, _now: told.append(device)
    )
    sound = reading(form)
    last = bytearray(sound)
    last[-3] ^= 1
    for altered, (topic, payload) in enumerate(
        (
            (TOPIC, sound),
            (TOPIC, bytes(last)),
            (TOPIC.replace("meters", "others"), sound),
            (TOPIC.replace("meter-1", "meter-2"), sound),
            (TOPIC, reading(form, mark=MARK + 1)),
        )
    ):
        backend._received(topic, payload)
        assert (backend.altered, backend.received, backend.latency.count, told) == (altered, 1, 1, ["meter-1"])
    assert backend.unexpected == 0
    assert len(backend.altered_examples) == 3


def test_a_reading_without_a_seal_is_altered() -> None:
    backend = Backend("backend", ["meter-1"], mark=MARK)
    backend._received(TOPIC, b'{"seq":1,"due_ns":1,"sent_ns":1}')
    assert (backend.altered, backend.unexpected, backend.received) == (1, 0, 0)


class _Nobody:
    """A connection on which nothing comes back."""

    def publish(self, _topic: str, _payload: bytes, _qos: int) -> None:
        pass


@pytest.mark.parametrize("answer", [b'"done":true,"detail":null', b'"done":false,"detail":"no"'])
async def test_an_answer_that_comes_twice_is_one_too_many(monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    backend = Backend("backend", ["meter-1", "meter-2"], mark=MARK)
    backend.connection = _Nobody()  # type: ignore[assignment]

    async def is_back() -> None:
        pass

    monkeypatch.setattr(backend, "come_back", is_back)
    commanding = asyncio.create_task(backend.command("meters", ["meter-1", "meter-2"], "identify", {}, 60.0))
    while len(backend._commands) < 1:
        await asyncio.sleep(0)
    (identifier,) = backend._commands
    for unexpected in (0, 1):
        receive(backend, "fleet/meters/meter-1/ack", b'{"id":"%s",%s}' % (identifier.encode(), answer))
        assert backend.unexpected == unexpected
    receive(backend, "fleet/meters/meter-2/ack", b'{"id":"%s",%s}' % (identifier.encode(), answer))
    assert not (await commanding).missing


def test_who_only_commands_judges_the_answers_to_its_own_commands_and_leaves_the_rest_to_the_receivers() -> None:
    """Several workers command, and each hears all answers: what is nobody's would be counted by all of them."""
    backend = Backend("backend-w1", ["meter-1"], mark=MARK, others=True)
    for topic, payload, unexpected in (
        ("fleet/meters/meter-1/ack", b'{"id":"backend-w2-1","done":true}', 0),
        ("fleet/meters/meter-1/ack", b'{"id":"backend-w1-1","done":true}', 1),
        ("fleet/meters/meter-1/ack", b"garbage", 1),
        ("fleet/meters/stranger/ack", b'{"id":"backend-w1-1","done":true}', 1),
        ("elsewhere", b"", 1),
    ):
        receive(backend, topic, payload)
        assert backend.unexpected == unexpected, (topic, payload)


async def test_an_answer_that_comes_too_late_is_nobody_s_forgery(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Backend("backend", ["meter-1", "meter-2"], mark=MARK)
    backend.connection = _Nobody()  # type: ignore[assignment]

    async def is_back() -> None:
        pass

    monkeypatch.setattr(backend, "come_back", is_back)
    answers = await backend.command("meters", ["meter-1"], "identify", {}, 0.01)
    assert answers.missing == {"meter-1"}
    words = b'{"id":"%s","done":true,"detail":null}' % answers.identifier.encode()
    for device, unexpected in (("meter-1", 0), ("meter-1", 1), ("meter-2", 2)):  # Once, and from whom it was asked.
        receive(backend, f"fleet/meters/{device}/ack", words)
        assert backend.unexpected == unexpected, device


@pytest.mark.parametrize(("comes", "silent"), [(1, False), (20, False), (21, True)])
async def test_a_receiver_has_read_all_when_nothing_came_in_all_looks(
    monkeypatch: pytest.MonkeyPatch, comes: int, silent: bool
) -> None:
    """However long ago the last message came: while a loop stands still, nothing comes."""
    backend = Backend("backend", ["meter-1"], mark=MARK)
    backend._received(TOPIC, reading(Format.RAW))
    looks = 0

    async def looked(_seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks == comes:
            backend._received(TOPIC, reading(Format.RAW))

    monkeypatch.setattr(asyncio, "sleep", looked)
    assert await backend.silent() is silent, "what came before is read"
    assert looks == 20
