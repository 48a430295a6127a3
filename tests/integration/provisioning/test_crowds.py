"""Strangers who connect and ask for nothing: they crowd out each other, and nobody who does ask."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from provisioning.pki.openssl import forget_errors
from tests.integration.provisioning.test_feed import following
from tests.support.curl import Curl
from tests.support.openssl import OpensslDevice
from tests.support.provisioning import ProvisioningService

PLACES = 16
STRANGERS = 3 * PLACES
BEGUN = (
    b"",
    b"GET /.well-known/est/cacerts HTTP/1.1\r\n",
    b"POST /v1/tokens HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{",
)
"""What some of them send in TLS."""


@pytest.fixture
def small(tmp_path: Path) -> Iterator[ProvisioningService]:
    settings = {"maximum_connections": PLACES, "feed_heartbeat_seconds": 1}
    with ProvisioningService.copied(tmp_path / "fleet", settings) as running:
        yield running


@contextlib.contextmanager
def strangers(port: int, anchors: Path) -> Iterator[list[socket.socket]]:
    """Connections of one address that hold their places: silent, or half-way through a handshake, a head, a body."""
    context = ssl.create_default_context(cafile=str(anchors))
    held = []
    for number in range(STRANGERS):
        connection = socket.create_connection(("127.0.0.1", port), timeout=20, source_address=("127.0.0.9", 0))
        held.append(connection)
        if number % 5 == 1:
            connection.sendall(b"\x16\x03\x01\x02\x00\x01")
        elif number % 5 > 1:
            held[-1] = context.wrap_socket(connection, server_hostname="localhost")
            held[-1].sendall(BEGUN[number % 5 - 2])
    try:
        yield held
    finally:
        for connection in held:
            connection.close()


def is_over(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except (BlockingIOError, ssl.SSLWantReadError):
        return False
    except OSError:
        forget_errors()  # Else they would be taken for the next connection's.
        return True


def left_of(held: list[socket.socket], expected: int) -> int:
    """Return how many connections are not over, once those are *expected*, or nothing happens any more."""
    left = list(held)
    while len(left := [each for each in left if not is_over(each)]) > expected:
        if not select.select(left, [], [], 60)[0]:
            break
    return len(left)


def test_who_only_connects_keeps_nobody_out(small: ProvisioningService, tmp_path: Path) -> None:
    operator, stranger = Curl(small.https, small.bundle, small.operator), Curl(small.https, small.bundle)
    device = OpensslDevice(tmp_path, "meter-1")
    token = small.token(device="meter-1", group="north")
    with following(operator) as follower:
        assert follower.next_event()[0] == "current"
        with strangers(small.port, small.bundle) as held:
            assert left_of(held, PLACES // 2) == PLACES // 2, "they make room for each other"
            answer = stranger.est("simpleenroll", device.request(), "--user", f"meter-1:{token}")
            assert answer.status == 200, answer.text
            same_address = ("--interface", "127.0.0.9")
            assert stranger.run("/.well-known/est/cacerts", *same_address).status == 200
        assert follower.next_event()[0] == "current", "who is being answered keeps his place"
    assert small.log.count("CROWDED") == 1
    assert "Traceback" not in small.log


def test_so_it_is_on_the_plain_port(small: ProvisioningService) -> None:
    plain = Curl(small.http)
    with contextlib.ExitStack() as stack:
        port = int(small.http.rpartition(":")[2])
        for _ in range(STRANGERS):
            stack.enter_context(
                socket.create_connection(("127.0.0.1", port), timeout=20, source_address=("127.0.0.9", 0))
            )
        assert plain.run("/healthz").status == 200
        assert plain.run("/healthz", "--interface", "127.0.0.9").status == 200


def test_who_takes_longer_for_the_handshake_than_the_settings_allow_is_reset(tmp_path: Path) -> None:
    """Devices on slow links need longer than the ten seconds that are the default."""
    settings = {"handshake_seconds": 1}
    with (
        ProvisioningService.copied(tmp_path / "fleet", settings) as running,
        socket.create_connection(("127.0.0.1", running.port), timeout=8) as silent,
        pytest.raises(ConnectionResetError),
    ):
        silent.recv(1)
