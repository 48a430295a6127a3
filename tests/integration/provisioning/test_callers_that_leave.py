"""What is committed is told, though whoever asked has hung up meanwhile, or the service is being stopped.

Each commit waits until that has happened (`tests.support.held_store`), and the feed would look by itself only after a
minute. On SQLite: on PostgreSQL the transaction itself tells every process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import ssl
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from provisioning.client.feed_reader import FeedLost, RevocationEvent
from provisioning.pki.tls import client_context
from tests.support.broker_process import wait_until
from tests.support.enrolled import enrol
from tests.support.feed_events import follow
from tests.support.held_store import held_on_sqlite
from tests.support.provisioning import ProvisioningService

SETTINGS: dict[str, object] = {"feed_heartbeat_seconds": 60, "crl_debounce_seconds": 60}
"""With no CRL in between: its commit would be the one that is held."""
_PATIENCE = 40
"""Less than the feed's heartbeat."""
_OTHERS = 10
WAYS = [("/v1/revocations", ""), ("/v1/suspensions", "Idempotency-Key: a\r\n")]


@contextlib.contextmanager
def asked(service: ProvisioningService, path: str, key: str, **body: object) -> Iterator[ssl.SSLSocket]:
    """Send a request of the operator's, with the header *key*."""
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{key}"
    context = client_context(service.bundle, service.operator)
    with (
        socket.create_connection(("127.0.0.1", service.port), _PATIENCE) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as connection,
    ):
        connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        yield connection


def repeated(service: ProvisioningService) -> None:
    """Make the last of `WAYS` again, until its answer comes."""
    path, key = WAYS[-1]

    def answered() -> bool:
        with asked(service, path, key, device="meter-2") as connection:
            said = connection.recv(1000)
        assert said.startswith((b"HTTP/1.1 201", b"HTTP/1.1 409")), said
        return said.startswith(b"HTTP/1.1 201")

    wait_until(answered, "its answer", _PATIENCE)


def reset(connection: ssl.SSLSocket, service: ProvisioningService) -> None:
    """Cut the connection, and return when the service has seen it."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    with service.api() as api:
        for _ in range(_OTHERS):
            assert api.get("/v1/openapi.json").status_code == 200


@contextlib.contextmanager
def heard(service: ProvisioningService) -> Iterator[list[int]]:
    """Yield the serial numbers that a follower of the feed hears, until the service ends."""
    serials: list[int] = []

    async def listen() -> None:
        with contextlib.suppress(FeedLost):
            async for event in follow(service.https, service.bundle, service.operator, 0):
                if isinstance(event, RevocationEvent):
                    serials.append(event.revocation.serial)  # noqa: PERF401 - each as it comes

    with ThreadPoolExecutor(1) as followers:
        listening = followers.submit(lambda: asyncio.run(listen()))
        wait_until(lambda: "feed subscribed" in service.log, "a follower", _PATIENCE)
        yield serials
        listening.result(_PATIENCE)


def test_what_is_committed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with held_on_sqlite(tmp_path, SETTINGS, monkeypatch) as store, store.service as service:
        devices = enrol(service, "meter-1", "meter-2", "meter-3")
        wanted = [each.certificate.serial_number for each in devices]
        with heard(service) as told:
            for number, (path, key) in enumerate(WAYS):
                store.hold()
                with asked(service, path, key, device=devices[number].name) as connection:
                    store.wait_until_held()
                    if key:  # That one was for the key alone.
                        store.let_one()
                        store.wait_until_held()
                    reset(connection, service)
                assert told == wanted[:number]
                store.free()
                wait_until(lambda: told == wanted[: number + 1], "it is told", _PATIENCE)
            repeated(service)  # Whose answer is kept now: that commit would be the one that is held.
            store.hold()
            with asked(service, "/v1/revocations", "", device="meter-3") as connection:
                store.wait_until_held()
                os.kill(service.pid, signal.SIGTERM)
                wait_until(lambda: '"stopping"' in service.log, "the stop", _PATIENCE)
                store.free()
                assert b" 201 " in connection.recv(1000)
        assert told == wanted, "who was answered is heard"
        assert "REQUESTS_CUT_OFF" not in service.log
