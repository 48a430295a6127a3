"""The epoll set, over real sockets: who is called and when, and the end of all of them."""

from __future__ import annotations

import asyncio
import select
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from broker.sockets.poller import READABLE, Poller
from broker.sockets.turn import Turn
from tests.support.turned_loop import TurnedLoop
from tests.support.watched import WatchedClient


class Client(WatchedClient):
    """One that leaves when it is told to, at once or later, or not at all."""

    def __init__(self, poller: Poller, leaves: float | None = 0.0) -> None:
        super().__init__()
        self.poller = poller
        self.leaves = leaves
        self.aborted = False
        poller.watch(self.ours.fileno(), self, READABLE)

    def close(self) -> None:
        if self.leaves is not None:
            asyncio.get_running_loop().call_later(self.leaves, self.poller.forget, self.ours.fileno())

    def abort(self, code: str = "ABORTED", detail: str = "") -> None:
        del code, detail
        self.aborted = True
        self.poller.forget(self.ours.fileno())


class Hall(TurnedLoop):
    def __init__(self) -> None:
        super().__init__(now=1.0)
        self.turn = Turn(self.loop.call_soon)
        self.poller = Poller(self.loop, self.turn)
        self.clients = [Client(self.poller) for _ in range(2)]

    def again(self, client: Client) -> None:
        self.poller.again(client.ours.fileno())

    def close(self) -> None:
        self.poller.close()
        for each in self.clients:
            each.end()
        self.loop.close()


@pytest.fixture
def hall() -> Iterator[Hall]:
    made = Hall()
    yield made
    made.close()


def test_who_has_more_is_called_once_more_without_an_event_and_not_if_that_is_enough(hall: Hall) -> None:
    first, second = hall.clients
    for client in hall.clients:
        hall.again(client)
    hall.poller.enough(second.ours.fileno())
    for _ in range(3):
        hall.go_round()
    assert (first.calls, second.calls) == (1, 0)
    hall.again(first)
    hall.poller.forget(first.ours.fileno())
    hall.poller.watch(first.ours.fileno(), second, READABLE)  # The number is another's now.
    hall.go_round()
    assert (first.calls, second.calls) == (1, 0)


def test_what_one_connection_meets_does_not_affect_the_others(hall: Hall) -> None:
    first, second = hall.clients
    first.says()
    second.says()
    first._act = lambda: 1 / 0
    with capture_logs() as logs:
        hall.go_round()
    assert [each["code"] for each in logs] == ["INTERNAL_ERROR"]
    assert (first.aborted, second.aborted, second.heard) == (True, False, b"!")
    assert len(hall.poller) == 1


async def test_at_the_end_all_are_closed_and_whoever_stays_is_aborted() -> None:
    loop = asyncio.get_running_loop()
    for leaves in ([], [0.0, 0.02], [0.0, None]):
        poller = Poller(loop, Turn(loop.call_soon))
        clients = [Client(poller, each) for each in leaves]
        descriptor = poller._epoll.fileno()
        async with asyncio.timeout(30):
            await poller.drained(0.05 if None in leaves else 60)
        assert [each.aborted for each in clients] == [each is None for each in leaves]
        assert len(poller) == 0
        assert poller._epoll.closed
        assert not loop.remove_reader(descriptor)
        for each in clients:
            each.end()


def test_a_client_that_dozes_where_there_is_no_other_set_stays(hall: Hall) -> None:
    descriptor = hall.clients[0].ours.fileno()
    assert hall.poller.settled(descriptor, hall.clients[0], READABLE, dozes=True) is hall.poller
    other = hall.poller.doze = Poller(hall.loop, hall.turn)
    assert hall.poller.settled(descriptor, hall.clients[0], READABLE, dozes=False) is hall.poller
    hall.again(hall.clients[0])
    assert hall.poller.settled(descriptor, hall.clients[0], READABLE, dozes=True) is other
    assert (len(hall.poller), len(other)) == (1, 1)
    hall.go_round()
    hall.go_round()
    assert hall.clients[0].calls == 1, "what it had more of is not forgotten"
    with pytest.raises(FileNotFoundError):
        hall.poller.change(descriptor, select.EPOLLOUT)
    other.close()
