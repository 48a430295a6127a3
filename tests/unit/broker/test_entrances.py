"""When clients are let in: not before it is known who is revoked, and nowhere but where the settings say."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from broker.credentials.own_certificate import OwnCertificate
from broker.door.listener import Doors, Listener
from broker.door.listening import ListenError
from broker.engine.returning import GRACE
from broker.process import entrances
from broker.process.entrances import announce, listen_everywhere
from broker.revocation.revocation_feed import RevocationFeed
from broker.revocation.revoked_services import RevokedServices
from broker.session.session import Session
from broker.settings.config import BrokerConfig
from broker.settings.origins import Origins
from broker.sockets.coalescing import Coalescing
from broker.sockets.doze import Doze
from broker.sockets.poller import Poller
from broker.sources.revocation_lists import RevocationLists
from broker.sources.staple import Staple
from provisioning.pki.tls import ClientCertificate, CredentialPem, server_context
from tests.support.pki import DOMAIN, shared_pki
from tests.support.wire import MemoryBroker, will

HOST = "127.0.0.1"
NOBODY = "https://127.0.0.1:9"
"""The discard port: nobody listens there."""


class Entrances:
    """The doors of a broker whose sources of revocations say something when the test wants it."""

    def __init__(
        self, directory: Path, broker: MemoryBroker, opened: contextlib.AsyncExitStack, **settings: Any
    ) -> None:
        pki = shared_pki()
        own, self._cafile = pki.broker().write(directory), directory / "anchors.pem"
        self._cafile.write_text(pki.anchors)
        short = {} if "listener" in settings else {"port": 0}
        common: dict[str, Any] = {
            "cafile": self._cafile,
            "certfile": own.certificate,
            "keyfile": own.key,
            "provisioning": NOBODY,
        }
        self.config = BrokerConfig(**(common | short | {"host": HOST} | settings))
        loop = asyncio.get_running_loop()
        self.engine, self.clock = broker.engine, loop.time
        poller = Poller(loop, self.engine.turn, Coalescing(lambda: 0))
        doors = Doors(poller, Doze(loop, self.engine.turn, poller, lambda: 0))
        context = server_context(own, self._cafile, client_certificate=ClientCertificate.REQUIRED)
        opened.push_async_callback(doors.drained, 0)
        self.listeners: list[Listener] = listen_everywhere(self.config, self.engine, doors, context, opened)
        self.lists = RevocationLists(self.engine, self.config, self.clock)
        self.staple = Staple(self.config, OwnCertificate(own, CredentialPem.of(own)), self.engine, self.clock)
        known = RevokedServices(directory)
        self.feed = RevocationFeed(self.engine, NOBODY, self._cafile, own, self.clock, _no_other, known)

    def come(self, listener: int = 0) -> socket.socket:
        """Connect, which the kernel grants whether anybody is let in or not."""
        return socket.create_connection((HOST, int(self.listeners[listener].url.rpartition(":")[2])))

    @property
    def let_in(self) -> int:
        return self.engine.metrics.connections_accepted

    @contextlib.asynccontextmanager
    async def announcing(self, *, feed: bool = True) -> AsyncIterator[asyncio.Task[None]]:
        """Let them in when that is due, while the block runs."""
        jobs = [
            asyncio.create_task(each)
            for each in (
                announce(
                    self.config, self.engine, self.listeners, self.feed if feed else None, self.lists, self.staple,
                    ["", "unix:admin"],
                ),
                self.staple.run(),
            )
        ]  # fmt: skip
        try:
            yield jobs[0]
        finally:
            for each in jobs:
                each.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)


async def _no_other(_code: str) -> bool:
    return False


async def rounds() -> None:
    """Let the loop come round as often as anything needs that is due."""
    for _ in range(10):
        await asyncio.sleep(0)


async def until(happened: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not happened():
            await asyncio.sleep(0)


@pytest.fixture
async def opened() -> AsyncIterator[contextlib.AsyncExitStack]:
    async with contextlib.AsyncExitStack() as stack:
        yield stack


async def test_who_comes_waits_until_it_is_known_who_is_revoked(
    tmp_path: Path, broker: MemoryBroker, opened: contextlib.AsyncExitStack, capsys: pytest.CaptureFixture[str]
) -> None:
    doors = Entrances(tmp_path, broker, opened)
    session = _leaves_a_will(broker)
    capsys.readouterr()
    doors.engine.returning.expect(session)
    async with doors.announcing() as announced:
        with doors.come():
            await rounds()
            assert doors.let_in == 0
            doors.lists.current.set()
            await rounds()
            assert doors.let_in == 0, "the feed may name him"
            shut_until = doors.clock() + GRACE + 5
            assert doors.engine.returning.waits(session, shut_until), "he may be waiting at the door"
            assert capsys.readouterr().out == ""
            doors.feed.current.set()
            await until(lambda: doors.let_in == 1)
            await announced
        assert not doors.engine.returning.waits(session, shut_until)
    assert f"fleet-broker ready {doors.listeners[0].url} unix:admin" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("require", "no client is admitted until the revocation feed can be read"),
        ("advisory", "clients are admitted without the revocation feed (feed_policy is advisory)"),
    ],
)
async def test_the_doors_open_without_what_does_not_come_and_that_is_said(
    tmp_path: Path,
    broker: MemoryBroker,
    opened: contextlib.AsyncExitStack,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    policy: str,
    said: str,
) -> None:
    """Whom admission lets in then, the policy says. The ready line waits for the lists, which have their own limits."""
    monkeypatch.setattr(entrances, "_FEED_PATIENCE", 0.0)
    doors = Entrances(tmp_path, broker, opened, feed_policy=policy)
    with capture_logs() as logs:
        async with doors.announcing() as announced:
            with doors.come():
                await until(lambda: doors.let_in == 1)
            await rounds()
            assert capsys.readouterr().out == ""
            doors.lists.current.set()
            await announced
    assert [event["event"] for event in logs if event.get("code") == "FEED_LOST"] == [said]
    assert capsys.readouterr().out


async def test_an_advisory_feed_keeps_nobody_waiting(
    tmp_path: Path, broker: MemoryBroker, opened: contextlib.AsyncExitStack
) -> None:
    doors = Entrances(tmp_path, broker, opened, feed_policy="advisory")
    async with doors.announcing():
        with doors.come():
            await rounds()
            assert doors.let_in == 0, "the lists do"
            doors.lists.current.set()
            await until(lambda: doors.let_in == 1)


async def test_without_a_feed_the_lists_alone_are_waited_for(
    tmp_path: Path, broker: MemoryBroker, opened: contextlib.AsyncExitStack
) -> None:
    doors = Entrances(tmp_path, broker, opened, provisioning=None, unsafe_no_revocation=True)
    with capture_logs() as logs:
        async with doors.announcing(feed=False) as announced:
            doors.lists.current.set()
            await announced
    assert [event["event"] for event in logs] == ["serving"]


async def test_each_listener_is_where_and_as_the_settings_say(
    tmp_path: Path, broker: MemoryBroker, opened: contextlib.AsyncExitStack
) -> None:
    common = {"websocket_origins": "https://dash.example", "proxy_protocol_from": "10.0.0.0/8, 2001:db8::1"}
    listeners = [
        {"port": 0, "max_unadmitted": 3},
        {"port": 0, "host": "127.0.0.2", "protocol": "wss"},
        {"port": 0, "protocol": "wss", "websocket_origins": [], "proxy_protocol_from": []},
    ]
    doors = Entrances(tmp_path, broker, opened, listener=listeners, **common)
    assert [each.url.rpartition(":")[0] for each in doors.listeners] == [
        "mqtts://127.0.0.1",
        "wss://127.0.0.2",
        "wss://127.0.0.1",
    ]
    assert [each.origins for each in doors.listeners[1:]] == [Origins(frozenset({"https://dash.example"})), Origins()]
    assert [each.proxies for each in doors.listeners] == [("10.0.0.0/8", "2001:db8::1/128")] * 2 + [()]
    assert doors.listeners[0]._limits().max_unadmitted == 3
    assert doors.listeners[1]._limits() == doors.engine.limits
    await opened.aclose()
    with pytest.raises(ConnectionRefusedError):
        doors.come()


async def test_a_listener_without_tls_is_on_loopback_whatever_the_host_and_is_said(
    tmp_path: Path, broker: MemoryBroker, opened: contextlib.AsyncExitStack
) -> None:
    who = f"spiffe://{DOMAIN}/service/tester"
    with capture_logs() as logs:
        doors = Entrances(tmp_path, broker, opened, host="127.0.0.2", unsafe_plain_port=0, unsafe_plain_identity=who)
    assert [each.url.rpartition(":")[0] for each in doors.listeners] == ["mqtts://127.0.0.2", "mqtt://127.0.0.1"]
    assert [(event["code"], event["identity"]) for event in logs] == [("UNSAFE_PLAIN", who)]


@pytest.mark.parametrize(
    ("setting", "settings"),
    [
        ("port", {"port": None}),
        ("websocket_port", {"websocket_port": None}),
        ("listener", {"listener": [{"port": 0}, {"port": None}]}),
        (
            "unsafe_plain_port",
            {"unsafe_plain_port": None, "unsafe_plain_identity": f"spiffe://{DOMAIN}/service/tester"},
        ),
    ],
)
async def test_of_a_listener_that_cannot_be_opened_the_setting_is_named(
    tmp_path: Path, broker: MemoryBroker, setting: str, settings: dict[str, Any]
) -> None:
    def use(port: int, said: Any) -> Any:
        """Put *port* where there is None."""
        if isinstance(said, dict):
            return {name: use(port, each) for name, each in said.items()}
        if isinstance(said, list):
            return [use(port, each) for each in said]
        return port if said is None else said

    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        async with contextlib.AsyncExitStack() as stack:
            with pytest.raises(ListenError, match=f"^{setting}: {HOST} port {port} cannot be listened on"):
                Entrances(tmp_path, broker, stack, **use(port, settings))


@pytest.mark.parametrize(("host", "shown"), [("a" * 70 + ".example", "aaa"), ("127.0.0.1\0", r"'127\.0\.0\.1\\x00'")])
async def test_a_name_that_cannot_be_looked_up_at_all_is_told_as_any_other(
    tmp_path: Path, broker: MemoryBroker, host: str, shown: str
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        with pytest.raises(ListenError, match=f"^port: {shown}.* cannot be listened on: .*set an address"):
            Entrances(tmp_path, broker, stack, host=host, unsafe_public_listener=True)


def _leaves_a_will(broker: MemoryBroker) -> Session:
    client = broker.device("meter-1", will=will("fleet/meters/meter-1/event"), session_expiry_interval=600)
    session = client.connection.session
    assert session is not None
    return session
