"""What a resumed TLS session exchanges keys by, until when it is resumed, and what a full handshake never loses."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from broker.sockets.tls_session import open_tls
from provisioning.pki import key_shown, openssl, resumed_exchange
from provisioning.pki.key_shown import MOST_SECONDS
from provisioning.pki.openssl_library import declare, library
from provisioning.pki.polite_handshake import FullHandshake
from provisioning.pki.tls import ClientCertificate, client_context, server_context
from tests.support.pki import shared_device, shared_pki
from tests.support.tls_server import Server, Told

PKI = shared_pki()
X25519, P256 = "x25519", "secp256r1"
HYBRID = "X25519MLKEM768" if resumed_exchange.CAN_EXCHANGE_LESS else X25519
SET_GROUPS = 92

pytestmark = pytest.mark.skipif(
    not resumed_exchange.CAN_LIMIT, reason="an OpenSSL that remembers no sessions, or cannot be asked"
)
needs_ml_kem = pytest.mark.skipif(not resumed_exchange.CAN_EXCHANGE_LESS, reason="an OpenSSL that has no ML-KEM")
seen_in_python = pytest.mark.skipif(
    not resumed_exchange.__file__.endswith(".py"), reason="compiled code calls compiled code past what a test puts in"
)


def group_of(client: ssl.SSLSocket | ssl.SSLObject) -> str:
    declare("SSL_get0_group_name", ctypes.c_char_p, [ctypes.c_void_p])
    name: bytes = library.SSL_get0_group_name(openssl.address_of(client))
    return name.decode()


@dataclass
class Visit:
    """A connection that is open, at both ends."""

    client: ssl.SSLSocket
    told: Told

    @property
    def group(self) -> str:
        """What keys were exchanged by, as the client says."""
        return group_of(self.client)

    @property
    def found(self) -> tuple[bool, str]:
        """Whether the session was resumed, and what keys were exchanged by."""
        return bool(self.client.session_reused), self.group

    @property
    def kept(self) -> int:
        """Where the server keeps the TLS session."""
        assert self.told.transport is not None
        kept: int = library.SSL_get_session(self.told.transport._inside)
        return kept

    @property
    def name(self) -> bytes:
        """What the ticket names the session by."""
        size = ctypes.c_uint()
        declare("SSL_SESSION_get_id", ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_void_p])
        return ctypes.string_at(library.SSL_SESSION_get_id(self.kept, ctypes.byref(size)), size.value)

    def key_was_shown(self, at: float) -> None:
        library.SSL_SESSION_set1_ticket_appdata(self.kept, int(at).to_bytes(8), 8)

    @property
    def shown_at(self) -> float:
        return key_shown.shown_at(self.kept)


@asynccontextmanager
async def serving(*, hybrid: bool = False) -> AsyncIterator[Server]:
    context = server_context(
        PKI.broker().credential,
        PKI.anchors,
        client_certificate=ClientCertificate.REQUIRED,
        remembered_sessions=100,
        hybrid_resumption=hybrid,
    )
    running = Server(open_tls, context)
    try:
        yield running
    finally:
        await running.close()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving() as running:
        yield running


def device(groups: str = "") -> ssl.SSLContext:
    context = client_context(PKI.anchors, shared_device("meter-1").credential)
    if groups:
        listed = ctypes.cast(ctypes.c_char_p(groups.encode()), ctypes.c_void_p)
        assert library.SSL_CTX_ctrl(openssl.address_of_context(context), SET_GROUPS, 0, listed)
    return context


@asynccontextmanager
async def visiting(
    server: Server, context: ssl.SSLContext, session: ssl.SSLSession | None = None
) -> AsyncIterator[Visit]:
    def connect() -> ssl.SSLSocket:
        raw = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        secured = context.wrap_socket(raw, server_hostname="localhost", session=session)
        secured.sendall(b"hello")
        assert secured.recv(100) == b"HELLO"
        return secured

    connecting = asyncio.get_running_loop().run_in_executor(None, connect)
    told = await server.accept()
    client = await connecting
    with client:
        yield Visit(client, told)
    await told.ended


async def test_who_returns_exchanges_keys_for_less_again_and_again(server: Server) -> None:
    context, session = device(), None
    for returns in range(4):
        async with visiting(server, context, session) as visit:
            assert visit.found == ((True, X25519) if returns else (False, HYBRID))
            session = visit.client.session
    assert not resumed_exchange._ordered, "nothing is kept of a handshake that is over"


async def test_who_asks_for_ml_kem_each_time_has_it() -> None:
    async with serving(hybrid=True) as server:
        context = device()
        async with visiting(server, context) as first:
            session = first.client.session
        async with visiting(server, context, session) as second:
            assert second.found == (True, HYBRID)


@needs_ml_kem
@pytest.mark.parametrize(
    ("offered", "group"), [(HYBRID, HYBRID), ("X25519MLKEM768:X25519", HYBRID), (P256, P256), (X25519, X25519)]
)
async def test_a_client_has_what_it_sends_a_share_of(server: Server, offered: str, group: str) -> None:
    context = device(offered)
    async with visiting(server, context) as first:
        assert first.found == (False, group)
        session = first.client.session
    async with visiting(server, context, session) as second:
        assert second.found == (True, group)


async def test_a_session_that_is_not_known_is_a_full_handshake(server: Server) -> None:
    context = device()
    async with visiting(server, context) as first:
        session = first.client.session
    library.SSL_CTX_flush_sessions(openssl.address_of_context(server.context), 0)
    async with visiting(server, context, session) as second:
        assert second.found == (False, HYBRID)


async def test_at_its_end_a_session_is_left_as_it_is(server: Server) -> None:
    context = device()
    async with visiting(server, context) as first:
        declare("SSL_SESSION_set_timeout", ctypes.c_long, [ctypes.c_void_p, ctypes.c_long])
        library.SSL_SESSION_set_timeout(first.kept, 1)
        session = first.client.session
    async with visiting(server, context, session) as second:
        assert second.group == HYBRID


async def test_a_session_of_another_hash_is_a_full_handshake(server: Server) -> None:
    context = device()
    with_sha384 = device()
    assert openssl.prefer(with_sha384, ("TLS_AES_256_GCM_SHA384",))
    async with visiting(server, with_sha384) as first:
        assert first.client.cipher()[0] == "TLS_AES_256_GCM_SHA384"  # type: ignore[index]
        session = first.client.session
    # A client that knows of SHA-384 alone for its ticket, and is then given SHA-256 by the server's own order.
    assert openssl.prefer(with_sha384, ("TLS_AES_256_GCM_SHA384", "TLS_AES_128_GCM_SHA256"))
    async with visiting(server, with_sha384, session) as second:
        assert second.found == (False, HYBRID)
    async with visiting(server, context) as third:
        assert third.found == (False, HYBRID)


async def test_a_day_after_the_key_was_shown_it_is_shown_again(server: Server) -> None:
    context = device()
    before = int(time.time())
    async with visiting(server, context) as first:
        assert before <= first.shown_at <= time.time()
        an_hour_ago = int(time.time()) - 3600
        first.key_was_shown(an_hour_ago)
        session = first.client.session
    async with visiting(server, context, session) as second:
        assert second.found == (True, X25519)
        session = second.client.session
    async with visiting(server, context, session) as third:
        assert third.found == (True, X25519)
        assert third.shown_at == an_hour_ago, "a return shows no key"
        third.key_was_shown(time.time() - MOST_SECONDS - 60)
        session = third.client.session
    async with visiting(server, context, session) as fourth:
        assert fourth.found == (False, HYBRID)
        assert fourth.shown_at >= before
        session = fourth.client.session
    async with visiting(server, context, session) as fifth:
        assert fifth.found == (True, X25519)


async def test_of_a_session_whose_key_nobody_knows_to_have_been_shown_none_is_resumed(server: Server) -> None:
    context = device()
    async with visiting(server, context) as first:
        library.SSL_SESSION_set1_ticket_appdata(first.kept, b"", 0)
        session = first.client.session
    async with visiting(server, context, session) as second:
        assert second.found == (False, HYBRID)


async def test_what_was_no_return_after_all_fails_and_the_next_time_is_a_full_handshake(server: Server) -> None:
    """Nothing is known that would have OpenSSL not resume what it was prepared for: it is told so here."""
    context = device()
    async with visiting(server, context) as first:
        session, name = first.client.session, first.name
    assert session is not None
    assert session.has_ticket

    def connect() -> bytes:
        raw = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        with context.wrap_socket(raw, server_hostname="localhost") as secured:
            return secured.recv(100)

    connecting = asyncio.get_running_loop().run_in_executor(None, connect)
    told = await server.accept()
    assert told.transport is not None
    resumed_exchange._ordered[told.transport._inside] = name
    assert await told.ended == "TLS_HANDSHAKE_FAILED"
    assert told.detail == "session not resumed"
    assert told.certificate is None, "nobody was let in"
    assert await connecting == b""
    async with visiting(server, context, session) as again:
        assert again.found == (False, HYBRID)


@needs_ml_kem
@seen_in_python
async def test_a_handshake_that_was_prepared_for_a_return_is_held_to_it(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it is complete it is noted whose return it was to be: otherwise `confirm` would let X25519 alone pass."""
    noted: list[bytes | None] = []
    confirm = resumed_exchange.confirm

    def noting(address: int) -> None:
        noted.append(resumed_exchange._ordered.get(address))
        confirm(address)
        assert address not in resumed_exchange._ordered

    monkeypatch.setattr(resumed_exchange, "confirm", noting)
    context = device()
    async with visiting(server, context) as first:
        session, name = first.client.session, first.name
    async with visiting(server, context, session) as second:
        assert second.found == (True, X25519)
    assert noted == [None, name]


@needs_ml_kem
async def test_where_nothing_is_resumed_keys_are_exchanged_as_in_any_full_handshake(server: Server) -> None:
    """The port apart had the callback of the context that it shares: it found the session, and X25519 was enough."""
    context = device()
    async with visiting(server, context) as first:
        session = first.client.session
    assert server.context is not None
    server.context.sslobject_class = FullHandshake
    sent, answered = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(answered, sent, server_hostname="localhost", session=session)
    apart = server.context.wrap_bio(sent, answered, server_side=True)
    for end in (client, apart, client, apart):
        with contextlib.suppress(ssl.SSLWantReadError):
            end.do_handshake()
    assert (apart.version(), apart.session_reused, group_of(client)) == ("TLSv1.3", False, HYBRID)
    assert not resumed_exchange._ordered
    async with visiting(server, context, session) as second:
        assert second.found == (True, X25519), "where it was made"


async def test_a_session_is_not_held_against_another_at_its_place(server: Server) -> None:
    context = device()
    for _ in range(3):
        async with visiting(server, context) as visit:
            assert visit.found == (False, HYBRID)
            assert visit.told.transport is not None
            # As a handshake leaves it that was a return and ended before it was complete.
            resumed_exchange._ordered[visit.told.transport._inside] = visit.name


@needs_ml_kem
@pytest.mark.parametrize(
    ("groups", "order"),
    [
        ("DEFAULT", "X25519:X25519MLKEM768:"),  # And what else this version has.
        ("X25519MLKEM768:secp384r1:X25519", "X25519:X25519MLKEM768:secp384r1"),
        ("secp256r1:X25519MLKEM768", ""),
        ("secp256r1:X25519", ""),
        ("X25519MLKEM768:X25519:brainpoolP256r1tls13", ""),
    ],
)
def test_no_group_is_brought_in_that_the_machine_s_configuration_leaves_out(
    tmp_path: Path, groups: str, order: str
) -> None:
    configuration = tmp_path / "openssl.cnf"
    configuration.write_text(
        f"openssl_conf = all\n[all]\nssl_conf = tls\n[tls]\nsystem_default = here\n[here]\nGroups = {groups}\n"
    )
    asked = "from provisioning.pki import resumed_exchange as asked; print(asked._ORDER_BYTES.decode())"
    told = subprocess.run(
        [sys.executable, "-c", asked],
        env=os.environ | {"OPENSSL_CONF": str(configuration)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    found = told.stdout.strip()
    assert found == order or (order.endswith(":") and found.startswith(order) and "ffdhe" not in found)


@pytest.mark.parametrize("version", [(3, 3, 0, 0, 0), (3, 4, 1, 0, 0), (3, 5, 0, 0, 0)])
def test_where_sessions_are_remembered_their_life_is_limited(version: tuple[int, ...]) -> None:
    """From OpenSSL 3.3 on they are, and only from 3.5 on was there a day after which the key has to be shown."""
    asked = (
        f"import ssl; ssl.OPENSSL_VERSION_INFO = {version}; from provisioning.pki import resumed_exchange, resumption;"
        "print(resumption.CAN_REMEMBER, resumed_exchange.CAN_LIMIT, resumed_exchange.CAN_EXCHANGE_LESS)"
    )
    told = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True, timeout=60)
    assert told.stdout.split() == ["True", "True", str(version >= (3, 5))]
