"""The epoll set, over real sockets: who is called and when, and the end of all of them."""

from __future__ import annotations

import asyncio
import select
from collections.abc import Iterator
from functools import partial

import pytest
from structlog.testing import capture_logs

from broker.sockets.poller import BATCH, READABLE, WRITABLE, Poller
from broker.sockets.turn import Turn
from broker.sockets.work import PORTION
from tests.support.turned_loop import TurnedLoop
from tests.support.watched import WatchedClient


class Client(WatchedClient):
    """One that leaves when it is told to, at once or later, or not at all; it may linger until then."""

    def __init__(self, poller: Poller, leaves: float | None = 0.0, *, lingers: bool = False) -> None:
        super().__init__()
        self.poller = poller
        self.leaves = leaves
        self.lingers = lingers
        self.aborted = False
        poller.watch(self.ours.fileno(), self, READABLE)

    def close(self) -> None:
        if self.lingers:
            self.poller.linger(self.ours.fileno(), self)
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

    def spend(self, client: Client, called: list[Client], work: int = 2 * PORTION) -> None:
        self.turn.work.done += work
        called.append(client)
        self.poller.forget(client.ours.fileno())

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
    for end in (hall.poller.forget, lambda each: hall.poller.linger(each, first)):
        hall.again(first)
        end(first.ours.fileno())
        hall.poller.watch(first.ours.fileno(), second, READABLE)  # The number is another's now.
        hall.go_round()
        assert (first.calls, second.calls) == (1, 0)


@pytest.mark.parametrize("ended", [9, BATCH + 4])
@pytest.mark.parametrize("comes", ["with them", "later"])
def test_who_asks_does_not_wait_for_the_many_who_have_ended(hall: Hall, ended: int, comes: str) -> None:
    """Each of them is half a turn's work: all would be more than a hundred turns, and epoll reports only a batch."""
    asks = hall.clients[0]
    gone = [Client(hall.poller) for _ in range(ended)]
    hall.clients += gone
    called: list[Client] = []
    for each in gone:
        each._act = partial(hall.spend, each, called)
        each.theirs.close()
    if comes == "with them":
        hall.poller.forget(asks.ours.fileno())
        hall.poller.watch(asks.ours.fileno(), asks, READABLE)  # epoll has it behind the others.
        asks.says()
    hall.go_round()
    assert len(called) == 2, "a turn's work"
    if comes == "later":
        asks.says()
    hall.go_round()
    assert asks.heard == b"!"
    while len(called) < ended:
        hall.go_round()
    assert set(called) == set(gone)


def test_of_those_who_have_ended_few_are_called_in_a_turn_though_they_cost_little(hall: Hall) -> None:
    """Whoever asks has the answer at the end of the turn: it would wait for hundreds of them."""
    asks = hall.clients[0]
    gone = [Client(hall.poller) for _ in range(50)]
    hall.clients += gone
    called: list[Client] = []
    for each in gone:
        each._act = partial(hall.spend, each, called, 0)
        each.theirs.close()
    hall.poller.forget(asks.ours.fileno())
    hall.poller.watch(asks.ours.fileno(), asks, READABLE)  # epoll has it behind the others.
    asks.says()
    turns = []
    while len(called) < len(gone):
        before = len(called)
        hall.go_round()
        turns.append(len(called) - before)
        assert asks.heard == b"!"
    assert turns == [16, 16, 16, 2]
    assert set(called) == set(gone)


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


@pytest.mark.parametrize("closed", [False, True])
def test_a_connection_that_cannot_even_be_closed_does_not_affect_the_others(hall: Hall, *, closed: bool) -> None:
    """What OpenSSL held for others was read no more in that turn, nor in any, and what they were sent waited."""
    first, second = hall.clients

    def fail(code: str = "", detail: str = "") -> None:
        del code, detail
        if closed:
            first.ours.close()
        raise ValueError

    first.says()
    first._act, first.abort = lambda: 1 / 0, fail  # type: ignore[method-assign]
    hall.again(second)
    with capture_logs() as logs:
        for _ in range(3):
            hall.go_round()
    assert [each["code"] for each in logs] == ["INTERNAL_ERROR"] * 2
    assert (first.calls, second.calls) == (1, 1)
    assert len(hall.poller) == 1


@pytest.mark.parametrize(
    ("watched", "says", "called"),
    [
        (READABLE, True, ["read"]),
        (WRITABLE, True, ["write"]),
        (READABLE | WRITABLE, False, ["write"]),
        (READABLE | WRITABLE, True, ["write", "read"]),
    ],
)
@pytest.mark.parametrize("closes", [False, True])
def test_a_socket_that_accepts_bytes_is_written_to_first_and_then_read_if_it_is_still_there(
    hall: Hall, watched: int, called: list[str], *, says: bool, closes: bool
) -> None:
    calls: list[str] = []
    client, descriptor = hall.clients[0], hall.clients[0].ours.fileno()

    def write() -> None:
        calls.append("write")
        hall.poller.change(descriptor, READABLE)
        if closes:
            hall.poller.forget(descriptor)

    client.on_writable = write  # type: ignore[method-assign]
    client._act = lambda: calls.append("read")
    hall.poller.change(descriptor, watched)
    if says:
        client.says()
    hall.go_round()
    assert calls == (called[:1] if closes else called)


def test_no_memory_is_not_taken_for_a_fault_of_the_connection_that_met_it(hall: Hall) -> None:
    def act() -> None:
        raise MemoryError

    client = hall.clients[0]
    client._act = act
    client.says()
    met: list[object] = []
    hall.loop.set_exception_handler(lambda _loop, context: met.append(context["exception"]))
    hall.go_round()
    assert [type(each) for each in met] == [MemoryError]
    assert not client.aborted


@pytest.mark.parametrize("leaves", [[], [0.0, 0.02], [0.0, None]], ids=str)
@pytest.mark.parametrize("lingering", [0, 1, 2])
async def test_at_the_end_all_are_closed_and_whoever_stays_is_aborted(
    leaves: list[float | None], lingering: int
) -> None:
    """Those that have said goodbye are waited for like the others."""
    loop = asyncio.get_running_loop()
    poller = Poller(loop, Turn(loop.call_soon))
    earlier = Client(poller)
    poller.forget(earlier.ours.fileno())  # All had gone once before.
    earlier.end()
    clients = [Client(poller, each, lingers=len(leaves) - at <= lingering) for at, each in enumerate(leaves)]
    descriptor = poller._epoll.fileno()
    async with asyncio.timeout(30):
        await poller.drained(0.05 if None in leaves else 60)
    assert [each.aborted for each in clients] == [each is None for each in leaves]
    assert len(poller) == 0
    assert poller._epoll.closed
    assert not loop.remove_reader(descriptor)
    for each in clients:
        each.end()


def test_one_that_has_said_goodbye_is_there_until_it_has_gone_and_is_not_called(hall: Hall) -> None:
    first, second = hall.clients
    hall.again(first)
    hall.poller.linger(first.ours.fileno(), first)
    first.says()
    assert not hall.poller._epoll.poll(0), "what it still sends wakes nobody"
    for _ in range(3):
        hall.go_round()
    assert (first.calls, len(hall.poller)) == (0, 2)
    hall.poller.forget(second.ours.fileno())
    assert not hall.poller._empty.is_set()
    for _ in range(2):  # The second time it is not there.
        hall.poller.forget(first.ours.fileno())
        assert (len(hall.poller), hall.poller._empty.is_set()) == (0, True)


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
