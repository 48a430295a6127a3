"""How a connection is dialled: from where, how long its stages take, by which clock it is judged, and no leak."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ssl
import time
import warnings
from collections.abc import AsyncIterator
from typing import Any

import pytest

from device_sim.link.closure import Layer
from device_sim.link.tls_dial import Endpoint, NotAdmitted, _judge_by, _OutOfTime, dial
from provisioning.pki.role import Role
from provisioning.pki.tls import ClientCertificate, client_context, server_context
from tests.support.authority import Authority

_DAY = 86_400


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
async def endpoint(authority: Authority) -> AsyncIterator[Endpoint]:
    """A server that requires a certificate, and sends whose it was."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        subject = writer.get_extra_info("peercert")["subject"]
        writer.write(dict(pair for each in subject for pair in each)["commonName"].encode())
        await reader.read()
        writer.close()

    server = authority.issue("broker-1", role=Role.BROKER, group=None)
    context = server_context(server.pem, authority.pem, client_certificate=ClientCertificate.REQUIRED)
    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as listener:
        yield Endpoint("127.0.0.1", listener.sockets[0].getsockname()[1], "localhost")


async def said(tls: ssl.SSLSocket) -> str:
    """Return what the server says on *tls*."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(tls, readable.set)
    try:
        async with asyncio.timeout(30):
            while True:
                await readable.wait()
                readable.clear()
                with contextlib.suppress(ssl.SSLWantReadError):
                    return tls.recv(100).decode()
    finally:
        loop.remove_reader(tls)


async def test_each_connection_from_a_source_has_a_port_of_its_own(authority: Authority, endpoint: Endpoint) -> None:
    context = client_context(authority.pem, authority.issue("meter-1").pem)
    opened = [await dial(endpoint, context, deadline=30.0, source="127.0.0.3") for _ in range(2)]
    addresses = [each.socket.getsockname() for each in opened]
    for each in opened:
        each.socket.close()
    assert [host for host, _ in addresses] == ["127.0.0.3"] * 2
    assert len({port for _, port in addresses}) == 2


async def test_a_credential_takes_the_place_of_the_context_s(authority: Authority, endpoint: Endpoint) -> None:
    context = client_context(authority.pem, authority.issue("meter-1").pem)
    for credential, name in ((None, "meter-1"), (authority.issue("meter-2").pem, "meter-2")):
        dialled = await dial(endpoint, context, deadline=30.0, credential=credential)
        assert await said(dialled.socket) == name
        dialled.socket.close()


async def test_the_stages_of_a_connection_are_times_that_have_passed(authority: Authority, endpoint: Endpoint) -> None:
    context = client_context(authority.pem, authority.issue("meter-1").pem)
    started = time.monotonic()
    dialled = await dial(endpoint, context, deadline=30.0)
    elapsed = time.monotonic() - started
    dialled.socket.close()
    assert dialled.tcp > 0
    assert dialled.tls > 0
    assert dialled.tcp + dialled.tls <= elapsed


@pytest.mark.parametrize(
    ("offset", "words"),
    [(0.0, ""), (_DAY / 2, ""), (-_DAY, ""), (2.0 * _DAY, "has expired"), (-3.0 * _DAY, "is not valid yet")],
)
async def test_a_server_is_judged_by_the_clock_of_its_device(
    authority: Authority, endpoint: Endpoint, offset: float, words: str
) -> None:
    """It was issued two days ago, for another one."""
    context = client_context(authority.pem, authority.issue("meter-1").pem)
    if not words:
        (await dial(endpoint, context, deadline=30.0, clock_offset=offset)).socket.close()
        return
    with pytest.raises(NotAdmitted) as refused:
        await dial(endpoint, context, deadline=30.0, clock_offset=offset)
    closure = refused.value.closure
    assert (closure.layer, closure.code) == (Layer.TLS, "server_certificate")
    assert closure.reason == f"we refuse the server: by the device's clock its certificate {words}"


def test_a_certificate_is_valid_in_its_first_second_and_in_its_last() -> None:
    class Peer:
        """Has shown a certificate."""

        def getpeercert(self) -> dict[str, str]:
            return {"notBefore": "Nov 30 12:00:00 2026 GMT", "notAfter": "Dec  1 12:00:00 2026 GMT"}

    begins = ssl.cert_time_to_seconds("Nov 30 12:00:00 2026 GMT")
    peer: ssl.SSLSocket = Peer()  # type: ignore[assignment]
    for now in (begins, begins + _DAY):
        _judge_by(peer, now)
    for now, words in ((begins - 1, "is not valid yet"), (begins + _DAY + 1, "has expired")):
        with pytest.raises(_OutOfTime, match=words):
            _judge_by(peer, now)


@pytest.mark.parametrize("why", ["another CA", "nobody there", "another clock", "a broken credential"])
async def test_who_is_not_let_in_leaves_no_socket_open(authority: Authority, endpoint: Endpoint, why: str) -> None:
    class Broken:
        """Cannot be loaded."""

        def load_into(self, _context: ssl.SSLContext) -> None:
            raise RuntimeError("broken")

    anchors = Authority() if why == "another CA" else authority
    context = client_context(anchors.pem, authority.issue("meter-1").pem)
    where = Endpoint("127.0.0.1", 1, "localhost") if why == "nobody there" else endpoint
    credential: Any = Broken() if why == "a broken credential" else None
    offset = 9.0 * _DAY if why == "another clock" else 0.0
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with contextlib.suppress(NotAdmitted, RuntimeError):
            await dial(where, context, deadline=30.0, credential=credential, clock_offset=offset)
            raise AssertionError("it was let in")
        gc.collect()
    assert [each for each in told if each.category is ResourceWarning] == []
