"""The admin API for remote operators: HTTPS, and only with an operator's certificate that admission accepts.

Theory
------
It uses the present TLS context of the clients' listener for each connection, so renewed certificates and changed trust
apply at once. The same `Admission.examine` runs at every request, not only at the handshake: an operator who is revoked
while connected gets no further answer, nor does one whose TLS began in an earlier generation of trust.

Rules
-----
1. Without a valid certificate no client gets as far as HTTP; without the role operator it gets no answer.
2. An operator not named in `admin_changers` may only read: the operator's role at provisioning is not in the
   certificate.
3. While revocation data is too old to admit anybody, nobody is admitted here either. The Unix socket still answers.
4. Connections are limited, half of them per address. A newcomer without a place takes that of the connection that has
   been silent longest (`provisioning.connections.places`). So neither strangers nor devices can keep operators out with
   silent connections, as long as fewer begin during an operator's handshake than there are places; and from an address
   where an operator has been before, with no number of them. A connection found to be an operator's keeps its place,
   but only a few of one identity do, so that one who may only read keeps no other out.
5. Lines about refusals and failed handshakes are bounded: anybody can fail a handshake, and with any certificate of the
   fleet be refused, as often as he likes. He could fill the log, or displace other entries of the audit log.
6. A client that changes its TLS keys endlessly, which any certificate of the fleet allows, is cut off.
7. A client that fails the handshake is told why (`provisioning.pki.polite_handshake`), and resumes no TLS session: the
   secret of an operator's, in a program's memory, would do here what only his key may (docs/decisions/0351).

Does not handle: accepting, places, and the time for a handshake (`provisioning.connections.door`).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Collection, Hashable
from dataclasses import replace
from datetime import UTC, datetime
from http import HTTPStatus
from typing import cast
from weakref import WeakKeyDictionary

import structlog

from broker.admin.http_messages import Response, problem
from broker.admin.http_server import HttpServer
from broker.admin.metrics_endpoint import listen, shown_address
from broker.admission.guard import WindowCount
from broker.admission.inquiry import Inquiry
from broker.admission.peer import Peer
from broker.admission.refusal import RefusalCode, Refused, unauthorised
from broker.engine.engine import Engine
from broker.mqtt.codes import ReasonCode
from provisioning.connections.door import Door
from provisioning.connections.farewell import TLS_END_SECONDS
from provisioning.connections.places import Place, Places
from provisioning.pki import resumption
from provisioning.pki.address_key import address_key, plain
from provisioning.pki.identity import parse_uri
from provisioning.pki.key_updates import bound_key_updates
from provisioning.pki.openssl import address_of
from provisioning.pki.role import Role
from provisioning.pki.verified_path import peer_certificate, verified_path
from provisioning.program.host_and_port import with_port, without_port
from provisioning.program.proxy_header import Address

log = structlog.get_logger("broker")

_PLACES = 24
"""Fewer than the server accepts: a connection that has lost its place needs time to end."""
_KEPT_BY_ONE = 4
"""Connections of one operator that keep their places; a program or a browser has one or two."""
_HANDSHAKE_SECONDS = 10.0
_QUEUE = 256
"""What does not fit is dropped, and comes again with the kernel's next attempt, a second later."""
_ACCEPTS_A_TURN = 16
"""A third of a millisecond: devices are served in between."""
_LINE = 256
"""Connections whose handshake has not begun."""
_READ = 16 * 1024
_TOLD_SECONDS = 60.0
_MOST_TOLD = 10
"""Refusals of one identity in `_TOLD_SECONDS` that have a line each; and failed handshakes of one address."""
_MOST_TOLD_IN_ALL = 200
"""Of all identities, and of all addresses: who has a network of IPv6 has as many addresses as he likes."""
_STATUS_SECONDS = 5.0
"""For a certificate's status to be found out; the asker itself gives up sooner (`broker.sources.asker`)."""


class OperatorDoor:
    """A listening TLS port in front of one `HttpServer`."""

    def __init__(self, server: HttpServer, operators: Operators, context: Callable[[], ssl.SSLContext]) -> None:
        """Serve *operators* with the present *context*, whose TLS objects are `FullHandshake`."""
        self._server = server
        self._operators = operators
        self._context = context
        self._listening: socket.socket | None = None
        self._door: Door | None = None
        self._places = Places(_PLACES)
        self._failed = _Lines()
        """About addresses that fail the handshake."""
        self.url = ""

    def open(self, host: str, port: int) -> None:
        """Listen on *host* and *port*. Raises `ListenError`."""
        self._listening = listen(host, port, "admin_port")
        self.url = f"https://{shown_address(self._listening)}"
        self._door = Door(
            self._listening,
            self._context,
            self._made,
            self._places,
            handshake_seconds=_HANDSHAKE_SECONDS,
            backlog=_QUEUE,
            accepts_a_turn=_ACCEPTS_A_TURN,
            begun_a_turn=1,  # Each takes a stranger's place; devices are served in between.
            line=Places(_LINE, self._places.known),
            shutdown_seconds=TLS_END_SECONDS,
            failed=self._tell,
        )
        self._door.open()

    async def close(self) -> None:
        """Stop accepting; the server ends requests under way."""
        if self._door is not None and self._listening is not None:
            self._door.close()
            await self._door.closed()
            self._listening.close()

    def _made(self, place: Place, client: Address | None) -> asyncio.Protocol:
        """Return what serves a connection whose handshake begins now."""
        del client  # There is no proxy here, and `Operators` asks the connection itself.
        generation = self._operators.generation  # That of the context.

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._operators.began(writer, generation, place)

            def closing() -> None:
                self._operators.ended(writer)
                place.silent()

            try:
                await self._server.connected(reader, writer, closing)
            finally:
                place.leave()

        return _Connection(asyncio.StreamReader(limit=_READ), connected)

    def _tell(self, host: str, error: Exception) -> None:
        if self._failed.one_about(address_key(host)):
            log.info("admin handshake failed", address=host, detail=str(error))


class _Lines:
    """Which of the events that anybody can cause have a line in the log each."""

    def __init__(self) -> None:
        self._of_each = WindowCount(_TOLD_SECONDS)
        self._of_all = WindowCount(_TOLD_SECONDS)

    def one_about(self, whom: Hashable) -> bool:
        """Whether the next event, *whom* it is about, has one; count it."""
        now = asyncio.get_running_loop().time()
        return self._of_each.add(whom, now) <= _MOST_TOLD and self._of_all.add("", now) <= _MOST_TOLD_IN_ALL


class _Connection(asyncio.StreamReaderProtocol):
    """A connection after its handshake."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Limit changes of keys; now, before data that directly followed the handshake is read."""
        tls: ssl.SSLObject = transport.get_extra_info("ssl_object")
        address = address_of(tls)
        bound_key_updates(address)
        if address:
            resumption.leave_nothing(address)
        super().connection_made(transport)
        if tls.session_reused:  # Where OpenSSL cannot be called directly: it forgets the session of what ends so.
            cast("asyncio.Transport", transport).abort()


class Operators:
    """Decides, by the engine's admission, whether a connection is an operator's."""

    def __init__(self, engine: Engine, changers: Collection[str] = ()) -> None:
        """Those of our own trust domain with a name in *changers* may make changes."""
        self._engine = engine
        self._changers = frozenset(changers)
        self._asked: WeakKeyDictionary[asyncio.StreamWriter, Inquiry] = WeakKeyDictionary()
        self._generations: WeakKeyDictionary[asyncio.StreamWriter, int] = WeakKeyDictionary()
        self._places: WeakKeyDictionary[asyncio.StreamWriter, Place] = WeakKeyDictionary()
        self._kept: dict[asyncio.StreamWriter, str] = {}
        """Whose connections keep their places."""
        self._told = _Lines()
        """About identities, or addresses, that are refused."""

    @property
    def generation(self) -> int:
        """The present generation of trust."""
        return self._engine.admission.trust_generation

    def may_change(self, caller: str) -> bool:
        """Whether the operator with the identity *caller* may do more than read."""
        identity = parse_uri(caller)
        return identity.name in self._changers and self._engine.admission.is_ours(identity)

    def began(self, writer: asyncio.StreamWriter, generation: int, place: Place) -> None:
        """Take note that the TLS of *writer* uses the anchors of *generation*, and that it has a *place*."""
        self._generations[writer] = generation
        self._places[writer] = place

    def ended(self, writer: asyncio.StreamWriter) -> None:
        """Take note that nothing more is answered on the connection of *writer*."""
        self._kept.pop(writer, None)

    async def settle(self, writer: asyncio.StreamWriter) -> None:
        """Wait for what must be looked up elsewhere about the certificate: OCSP, a CRL that is not here yet."""
        outcome = self._examine(writer)
        inquiry = outcome.inquiry if isinstance(outcome, Peer) else None
        if inquiry is None:
            return
        self._asked[writer] = inquiry
        if not inquiry.done:
            done = asyncio.Event()
            inquiry.when_done(lambda _: done.set())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_STATUS_SECONDS):
                    await done.wait()

    def identify(self, writer: asyncio.StreamWriter) -> str | Response:
        """Return the operator's identity, or the answer to anybody else."""
        refused = self._judge(writer)
        if isinstance(refused, str):
            if (place := self._places.get(writer)) is not None:
                place.vouch(refused)
            if place is not None and list(self._kept.values()).count(refused) < _KEPT_BY_ONE:
                self._kept[writer] = refused
                place.asks()
            return refused
        engine, peer = self._engine, writer.get_extra_info("peername")
        address = with_port(plain(peer[0]), peer[1]) if peer else ""
        engine.metrics.refused[refused.code] += 1
        facts = {"code": refused.code.value, "detail": refused.recorded, "address": address}
        facts |= {"identity": refused.identity, "serial": refused.serial}
        about = refused.identity or without_port(address)
        if engine.history.witness is not None:
            engine.history.witness.told("operator refused", **facts)
        if self._told.one_about(about):
            log.warning("admin request refused", **facts)
        later = refused.reason_code is ReasonCode.SERVER_UNAVAILABLE
        status = HTTPStatus.SERVICE_UNAVAILABLE if later else HTTPStatus.FORBIDDEN
        return problem(status, refused.code, refused.detail)

    def _examine(self, writer: asyncio.StreamWriter) -> Peer | Refused:
        tls = writer.get_extra_info("ssl_object")
        certificate = peer_certificate(tls) if tls is not None else None
        admission = self._engine.admission.of_generation(self._generations.get(writer, 0))
        return admission.examine(certificate, datetime.now(UTC), lambda: verified_path(tls))

    def _judge(self, writer: asyncio.StreamWriter) -> str | Refused:
        outcome = self._examine(writer)
        if isinstance(outcome, Refused):
            return outcome
        asked = self._asked.get(writer)
        if outcome.inquiry is not None and not outcome.inquiry.done and asked is not None and asked.done:
            outcome = replace(outcome, inquiry=asked)  # It was just asked, and gave no answer to cache.
        if outcome.identity.role is not Role.OPERATOR:
            refusal: Refused | None = unauthorised(RefusalCode.WRONG_ROLE, "an operator's certificate is needed")
        else:
            admission = self._engine.admission
            refusal = admission.refuse_before(self._generations.get(writer, 0))
            refusal = refusal or admission.refuse_now(outcome, asyncio.get_running_loop().time())
        if refusal is None:
            return outcome.identity.uri
        return replace(refusal, identity=outcome.identity.uri, serial=outcome.serial)
