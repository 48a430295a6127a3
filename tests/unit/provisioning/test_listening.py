"""Ports: one pair of sockets, or a pair for each worker, on real sockets of the loopback addresses."""

from __future__ import annotations

import socket
from contextlib import suppress

import pytest

from provisioning.config import Settings
from provisioning.errors import ConfigurationError
from provisioning.listening import Listening, bound, bound_for

HOSTS = ["127.0.0.1", "::1", "localhost"]


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


@pytest.mark.parametrize("host", HOSTS)
def test_workers_have_sockets_of_their_own_on_the_same_two_ports(host: str) -> None:
    with bound_for(Settings(host=host, port=0, http_port=0), 3) as places:
        assert len({each.https_url for each in places}) == 1
        assert len({each.http_url for each in places}) == 1
        assert places[0].https_url.startswith(f"https://[{host}]:" if ":" in host else f"https://{host}:")
        assert places[0].https_url.rpartition(":")[2] != places[0].http_url.rpartition(":")[2]
        for each in places:
            each.https.listen()


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("theirs", [1, 2])
@pytest.mark.parametrize("ours", [1, 2])
def test_a_port_where_anybody_listens_is_refused_whoever_has_workers(host: str, theirs: int, ours: int) -> None:
    settings = Settings(host=host, port=0, http_port=0)
    with bound_for(settings, 2) as places, bound(settings) as alone:
        for each in places:
            each.http.listen()
        taken = settings.model_copy(update={"http_port": port_of((places[0] if theirs == 2 else alone).http_url)})
        with pytest.raises(
            ConfigurationError,
            match=f"^http_port {taken.http_port} on {host} cannot be used: Address already in use; choose",
        ):
            (bound(taken) if ours == 1 else bound_for(taken, 2)).__enter__()


def test_one_that_is_interrupted_gets_nothing_until_it_listens_again() -> None:
    with bound_for(Settings(port=0, http_port=0), 2) as (one, other):
        one.interrupt()  # Nobody listens there yet: no error.
        for each in (one, other):
            each.https.listen(64)
            each.https.setblocking(False)
        assert accepted(one, other) == {one, other}
        one.interrupt()
        assert accepted(one, other) == {other}
        one.https.listen(64)
        assert accepted(one, other) == {one, other}


def accepted(*places: Listening) -> set[Listening]:
    """Connect 40 times, and return whose sockets have got some: that one of two gets none of 40 is no chance."""
    found = set()
    for _ in range(40):
        with socket.create_connection(("127.0.0.1", port_of(places[0].https_url)), timeout=10):
            for each in places:
                with suppress(OSError):  # Nothing has come, or it does not listen.
                    each.https.accept()[0].close()
                    found.add(each)
    return found
