"""Which address of a broker's name is used."""

from __future__ import annotations

import asyncio
import socket

import pytest

from device_sim.link.endpoint import endpoint_of
from device_sim.run.manner import has_many_sources

_NAME = "broker.example"


def _resolves_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    async def getaddrinfo(_loop: object, host: str, port: int, **_rest: object) -> list[object]:
        assert host == _NAME
        return [
            (socket.AF_INET6 if ":" in each else socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port))
            for each in addresses
        ]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", getaddrinfo)


@pytest.mark.parametrize("listens", ["127.0.0.2", "::1"])
async def test_of_several_addresses_one_is_used_where_somebody_listens(
    monkeypatch: pytest.MonkeyPatch, listens: str
) -> None:
    _resolves_to(monkeypatch, "::1", "127.0.0.1", "127.0.0.2")
    async with await asyncio.start_server(lambda _, writer: writer.close(), listens, 0) as server:
        port = server.sockets[0].getsockname()[1]
        endpoint = await endpoint_of(_NAME, port, None)
    assert (endpoint.host, endpoint.port, endpoint.server_name) == (listens, port, _NAME)


async def test_where_nobody_listens_the_first_is_left_to_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    _resolves_to(monkeypatch, "::1", "127.0.0.1")
    with socket.socket() as taken:  # Bound, and not listening.
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        assert (await endpoint_of(_NAME, port, "its-name")).host == "127.0.0.1"


@pytest.mark.parametrize(
    ("host", "why"),
    [("a..b", "no host can have that name"), ("a" * 64, "no host can have that name"), (_NAME, "Name .* not known")],
)
async def test_a_host_that_is_not_found_is_named_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, host: str, why: str
) -> None:
    if host == _NAME:

        async def getaddrinfo(*_: object, **__: object) -> list[object]:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", getaddrinfo)
    with pytest.raises(OSError, match=rf"^the broker's host {host} is not found: {why}; correct the name, or "):
        await endpoint_of(host, 8883, None)


async def test_a_single_address_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    _resolves_to(monkeypatch, "::1")
    came = []
    async with await asyncio.start_server(lambda *_: came.append(1), "::1", 0) as server:
        endpoint = await endpoint_of(_NAME, server.sockets[0].getsockname()[1], None)
    assert (endpoint.host, came) == ("::1", [])


@pytest.mark.parametrize(
    ("host", "several"), [("127.0.0.1", True), ("127.9.9.9", True), ("::1", False), ("192.0.2.1", False)]
)
def test_only_loopback_of_ipv4_has_more_addresses(host: str, several: bool) -> None:
    assert has_many_sources(host) is several
