"""A client without a keep alive that vanishes is found out by the kernel, no later than one with the longest."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from broker.mqtt.codes import ProtocolVersion
from broker.sockets.kernel_probes import probe
from tests.support.pki import shared_device
from tests.support.wire import MemoryBroker

Settings = tuple[int, int, int]


@pytest.fixture
def accepted() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as door, socket.create_connection(door.getsockname()):
        ours, _ = door.accept()
        with ours:
            yield ours


def settings(of: socket.socket) -> Settings:
    idle, interval, count = (
        of.getsockopt(socket.IPPROTO_TCP, option)
        for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
    )
    return idle, interval, count


@pytest.mark.parametrize(("silence", "expected"), [(3600, (3600, 360, 5)), (60, (60, 6, 5)), (1, (1, 1, 5))])
def test_the_kernel_asks_after_the_longest_keep_alive_and_gives_up_after_one_and_a_half(
    accepted: socket.socket, silence: int, expected: Settings
) -> None:
    accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 7200)  # Whatever this machine's setting.
    probe(accepted, silence)
    assert settings(accepted) == expected


@pytest.mark.parametrize("silence", [600, 65_535])
def test_a_system_that_asks_earlier_is_left_alone(accepted: socket.socket, silence: int) -> None:
    accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 300)
    before = settings(accepted)
    probe(accepted, silence)
    assert settings(accepted) == before


def test_what_has_no_such_settings_is_left_alone() -> None:
    one, other = socket.socketpair()
    with one, other:
        probe(one, 60)


@pytest.mark.parametrize(
    ("version", "keep_alive", "expected"),
    [
        (ProtocolVersion.V311, 0, 600),
        (ProtocolVersion.V311, 60, None),
        (ProtocolVersion.V5, 0, None),  # It is given a keep alive.
        (ProtocolVersion.V5, 60, None),
    ],
)
def test_only_who_has_no_keep_alive_costs_the_system_calls(
    version: ProtocolVersion, keep_alive: int, expected: int | None
) -> None:
    client = MemoryBroker(max_keepalive=600).open(shared_device("meter-1"), version=version)
    client.connect(keep_alive=keep_alive)
    assert client.transport.probed_after == expected
