"""The listeners of the settings: opened all or none, and when clients are admitted through them.

Theory
------
``listen_everywhere → (the rest of the broker starts) → let_in → ready line``. An open listener keeps arriving clients
in the kernel's queue; none is accepted before it is known which certificates are revoked. A client that connects after
the ready line is judged by everything there is to know, or the log has said what is not known.

Does not handle: the admin API and the metrics page, which have their own sockets and do not wait for revocations.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import structlog

from broker.door.listener import Doors, Listener, Speaks
from broker.door.listening import ListenError
from broker.engine.engine import Engine
from broker.settings.config import BrokerConfig
from broker.sources.revocation_lists import RevocationLists
from broker.sources.staple import Staple
from provisioning.pki.identity import parse_uri
from provisioning.program.build import build_identity
from provisioning.program.version import product_version

if TYPE_CHECKING:
    from broker.revocation.revocation_feed import RevocationFeed

log = structlog.get_logger("broker")

_FEED_PATIENCE = 10.0
_PLAIN_HOST = "127.0.0.1"


def listen_everywhere(
    config: BrokerConfig, engine: Engine, doors: Doors, context: ssl.SSLContext, opened: contextlib.AsyncExitStack
) -> list[Listener]:
    """Return the listeners of *config*; *opened* closes them. Raises `ListenError`."""
    loop = asyncio.get_running_loop()
    listeners = []
    for (setting, host, port), each in zip(places(config), config.listeners, strict=False):
        origins = each.origins(config.origins)
        listener = Listener(loop, engine, doors, context, Speaks(each.protocol), limits=each.limits, origins=origins)
        listener.proxies = each.proxies(config.proxy_protocol_from)
        _open(listener, setting, host, port, opened)
        listeners.append(listener)
    if config.unsafe_plain_port is not None and config.unsafe_plain_identity is not None:
        identity = parse_uri(config.unsafe_plain_identity)
        log.warning("a listener without TLS is open", code="UNSAFE_PLAIN", identity=identity.uri)
        listener = Listener(loop, engine, doors, context, Speaks.UNSAFE_PLAIN, identity)
        _open(listener, "unsafe_plain_port", _PLAIN_HOST, config.unsafe_plain_port, opened)
        listeners.append(listener)
    return listeners


def places(config: BrokerConfig) -> Iterator[tuple[str, str, int]]:
    """Yield setting, host and port of each listener of *config*, the one without TLS last."""
    names = ["listener"] * len(config.listener) or ["port", "websocket_port"]
    for name, each in zip(names, config.listeners, strict=False):
        yield name, each.host or config.host, each.port
    if config.unsafe_plain_port is not None:
        yield "unsafe_plain_port", _PLAIN_HOST, config.unsafe_plain_port


def _open(listener: Listener, setting: str, host: str, port: int, opened: contextlib.AsyncExitStack) -> None:
    try:
        listener.open(host, port)
    except (OSError, TypeError) as error:
        raise ListenError.of(setting, host, port, error) from error
    opened.callback(listener.stop_accepting)


async def announce(
    config: BrokerConfig,
    engine: Engine,
    listeners: list[Listener],
    feed: RevocationFeed | None,
    lists: RevocationLists,
    staple: Staple,
    others: Iterable[str],
) -> None:
    """Accept waiting clients, and write the ready line: the addresses of *listeners*, and *others*."""
    clock = asyncio.get_running_loop().time
    patience = clock() + _FEED_PATIENCE
    engine.returning.opened(patience)
    await _let_in(config, listeners, feed, lists, patience)
    engine.returning.opened(clock())
    await lists.current.wait()
    await staple.tried()
    if feed is not None:
        try:
            async with asyncio.timeout_at(patience):
                await feed.current.wait()
        except TimeoutError:
            said = "no client is admitted until the revocation feed can be read"
            if config.feed_terms.grace is None:
                said = "clients are admitted without the revocation feed (feed_policy is advisory)"
            log.warning(said, code="FEED_LOST")
    urls = [*filter(None, [listener.url for listener in listeners] + [*others])]
    # A log stored separately from standard output must also show which version was running.
    log.info("serving", version=product_version(), build=build_identity(), openssl=ssl.OPENSSL_VERSION, listeners=urls)
    sys.stdout.write(f"fleet-broker ready {' '.join(urls)}\n")
    sys.stdout.flush()


async def _let_in(
    config: BrokerConfig,
    listeners: list[Listener],
    feed: RevocationFeed | None,
    lists: RevocationLists,
    patience: float,
) -> None:
    """Accept waiting clients once revocations are known, or at *patience*, a time of the loop's clock.

    When the broker restarts, a fleet is back before the feed is: it would be turned away, for long.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout_at(patience):
            await lists.current.wait()
            if feed is not None and config.feed_terms.grace is not None:
                await feed.current.wait()
    for listener in listeners:
        listener.begin()
