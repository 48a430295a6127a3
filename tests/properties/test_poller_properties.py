"""Whoever is watched in the epoll set hears what he would hear if his socket were read by itself: the slow twin."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.sockets.poller import READABLE, Poller
from broker.sockets.turn import Turn
from tests.support.examples import examples
from tests.support.turned_loop import TurnedLoop
from tests.support.watched import WatchedClient

CLIENTS = 5
_READ = 100
"""What `WatchedClient` reads at once."""


class Listener(WatchedClient):
    """One that counts its reads, and stops being watched when its peer has ended, as a transport does."""

    def __init__(self, poller: Poller) -> None:
        super().__init__(self._listen)
        self._poller = poller
        self.calls_before = 0
        """Those until it was watched no more."""
        poller.watch(self.ours.fileno(), self, READABLE)

    def _listen(self) -> None:
        before = len(self.heard)
        self._read()
        if len(self.heard) == before:
            self.leave()

    def leave(self) -> None:
        if not self.gone:
            self.gone, self.calls_before = True, self.calls
            self._poller.forget(self.ours.fileno())


steps = st.one_of(
    st.tuples(st.just("says"), st.integers(0, CLIENTS - 1), st.integers(1, 250)),
    st.tuples(st.sampled_from(["ends", "leaves", "round", "round"]), st.integers(0, CLIENTS - 1), st.just(0)),
)


@examples(100)
@given(st.lists(steps, max_size=40))
def test_everybody_hears_what_was_said_until_he_left(walk: list[tuple[str, int, int]]) -> None:
    hall = TurnedLoop(now=1.0)
    poller = Poller(hall.loop, Turn(hall.loop.call_soon))
    clients = [Listener(poller) for _ in range(CLIENTS)]
    said, ended = [b""] * CLIENTS, [False] * CLIENTS
    for number, (step, index, size) in enumerate(walk):
        client = clients[index]
        match step:
            case "says" if not ended[index]:
                said[index] += bytes([number]) * size
                client.says(bytes([number]) * size)
            case "ends":
                ended[index] = True
                client.theirs.close()
            case "leaves":
                client.leave()
                one_by_one(client)
            case "round":
                hall.go_round()
    for _ in range(3 * sum(map(len, said)) // _READ + 2 * CLIENTS):
        hall.go_round()
    for index, client in enumerate(clients):
        if not client.gone:
            assert (client.heard, ended[index]) == (said[index], False)
        one_by_one(client)
        assert client.heard == said[index], "read by itself there was nothing more, and nothing else"
        client.leave()
        assert client.calls == client.calls_before
        client.end()
    poller.close()
    hall.close()


def one_by_one(client: Listener) -> None:
    """Read what is left as the slow twin does: that socket alone, until there is nothing."""
    heard = -1
    while heard != len(client.heard):
        heard = len(client.heard)
        client._read()
