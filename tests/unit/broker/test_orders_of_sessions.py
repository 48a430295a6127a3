"""Whatever the order of takeover, return, expiry, silence, revocation and stop: one connection, and the will once.

What must hold, after each step: no two connections have a session, nobody is connected who is revoked, or after the
stop, and nobody is admitted once that has begun. A will is published once at most; not if its certificate is revoked,
nor if its client is back before the delay is over [MQTT-3.1.3-9], nor while the broker stops; and otherwise it is, when
the delay is over or the session ends [MQTT-3.1.2-8], [MQTT-3.1.2-10].
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from broker.mqtt.codes import ReasonCode
from tests.support.interleavings import Choices, every_order, some_orders
from tests.support.pki import Held, shared_service
from tests.support.stepped_scene import NEW, OLD, Scene, Steps, revoked
from tests.support.wire import MemoryBroker, will

pytestmark = pytest.mark.hypothesis
DELAY, EXPIRY, KEEP_ALIVE = 5.0, 20.0, 4
"""The client is silent for long after six seconds, and its will is due five seconds later."""


@pytest.fixture(autouse=True)
def _unlogged() -> Iterator[None]:
    with capture_logs():  # A line takes longer than a step.
        yield


class Wills(Scene):
    """Clients that leave wills, each its own; somebody who receives them; and an oracle that knows which are due."""

    def __init__(self, directory: Path) -> None:
        super().__init__(MemoryBroker(max_connects_per_identity=0), directory)
        self.watcher = self.broker.open(shared_service("backend"))
        self.watcher.connect(client_id="backend")
        self.watcher.subscribe("fleet/#")
        self.afresh: set[int] = set()
        """Who wants the earlier session ended."""
        self.published: list[int] = []
        self.ends: dict[int, float] = {}
        """When whose connection was seen to be gone."""
        self.excused: set[int] = set()
        """Whose will must not be published any more, if it was not."""

    def comes(self, held: Held, *, clean_start: bool = False) -> Steps:
        def steps() -> Steps:
            number = len(self.clients)
            if clean_start:
                self.afresh.add(number)
            left = will("fleet/meters/meter-1/event", b"%d" % number, will_delay_interval=int(DELAY))
            interval: Any = {"session_expiry_interval": int(EXPIRY)}
            yield from self.connects(held, clean_start=clean_start, keep_alive=KEEP_ALIVE, will=left, **interval)

        return steps()

    def time_passes(self, *seconds: float) -> Steps:
        for number, each in enumerate(seconds):
            if number:
                yield
            for _ in range(int(each)):
                self.broker.advance(1.0)
                self._note()

    def check(self, after: str) -> None:
        super().check(after)
        self._note()

    def _note(self) -> None:
        """Compare what the watcher got with what is due."""
        now, status = self.broker.now, self.broker.engine.admission.status
        numbers = range(len(self.clients))
        admitted = [number for number in numbers if self.answers.get(self.clients[number]) is ReasonCode.SUCCESS]
        for number in admitted:
            if self.clients[number].closed:
                self.ends.setdefault(number, now)
        for message in self.watcher.messages() if not self.watcher.closed else ():
            number = int(message.payload)
            assert number in self.ends, "the will of somebody who is connected"
            is_ended = any(each > number for each in self.afresh.intersection(admitted))
            assert is_ended or now >= self.ends[number] + DELAY, "a will too early"
            assert number not in self.published, "a will twice"
            assert number not in self.excused, f"the will of {number}: revoked, back in time, or the broker stops"
            self.published.append(number)
        for number, ended in self.ends.items():
            peer = self.clients[number].connection.peer
            assert peer is not None
            if number in self.published or number in self.excused:
                continue
            if self.broker.engine.stopping or status.refuse_revoked(peer) is not None:
                self.excused.add(number)
            elif (after := [each for each in admitted if each > number]) and ended >= now - DELAY - 1:
                assert not self.afresh.intersection(after), "its session has ended, and its will is not sent"
                self.excused.add(number)
            else:
                assert now < ended + DELAY + 1, "a will is overdue"


def a_connected_one(directory: Path) -> Wills:
    scene = Wills(directory)
    for _ in scene.comes(OLD):
        pass
    scene.check("its connection")
    return scene


@pytest.mark.parametrize("clean_start", [False, True])
def test_a_will_is_published_once_or_not_at_all_whoever_is_silent_returns_or_is_revoked(
    tmp_path: Path, *, clean_start: bool
) -> None:
    def run(choices: Choices) -> None:
        scene = a_connected_one(tmp_path)
        every_order(
            {
                "time": scene.time_passes(4, 4, 4, 25),
                "its return": scene.comes(NEW, clean_start=clean_start),
                "the feed": scene.hears([revoked(1, OLD)]),
                "the network": scene.vanishes(scene.clients[0]),
            },
            choices,
            scene.check,
        )
        assert scene.open_with(OLD) == []

    some_orders(run, 12, 1_000)


def test_once_the_stop_has_begun_nobody_is_admitted_and_no_will_is_sent_whatever_else_happens(tmp_path: Path) -> None:
    def run(choices: Choices) -> None:
        scene = a_connected_one(tmp_path)
        every_order(
            {
                "the stop": scene.stops(),
                "time": scene.time_passes(7, 6),
                "its return": scene.comes(NEW),
                "the feed": scene.hears([revoked(1, OLD)]),
            },
            choices,
            scene.check,
        )
        assert scene.broker.engine.connected == 0

    some_orders(run, 12, 1_000)
