"""The service's two listening sockets, bound once, and their addresses.

Theory
------
They are bound before anything else is done, so that a port in use is reported at once, in one sentence, when the
service starts. One process has one pair. Several workers (`provisioning.service.workers`) have a pair each, all on
the same two ports: with ``SO_REUSEPORT`` the kernel spreads connections over those that listen. With one pair for all
of them, one worker of four usually accepted all of 16 simultaneous connections.

Rules
-----
1. ``SO_REUSEPORT`` would silently let another service of the same user share the port. So a shared pair is bound
   together with a socket without that option, whose bind fails if any process listens there.
2. A shared pair does not listen before its worker does: connections that the kernel assigns to a pair wait there.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
from collections.abc import Iterator
from dataclasses import dataclass

from provisioning.config import Settings
from provisioning.connections.door import BACKLOG
from provisioning.directory.whereabouts import copied, served
from provisioning.errors import ConfigurationError
from provisioning.program.host_and_port import with_port
from provisioning.program.loopback import is_loopback
from provisioning.program.unbound_socket import unbound


@dataclass(frozen=True, slots=True)
class Listening:
    """Two sockets that listen."""

    host: str
    https: socket.socket
    http: socket.socket

    @property
    def https_url(self) -> str:
        """Where devices and operators connect."""
        return self._url("https", self.https)

    @property
    def http_url(self) -> str:
        """Where relying parties connect."""
        return self._url("http", self.http)

    def interrupt(self) -> None:
        """Stop listening until it is started again; connections that are not accepted yet are reset."""
        for each in (self.https, self.http):
            # Of a socket that does not listen Linux says ENOTCONN, and shuts it down: every connection that is accepted
            # through it later has ended already.
            if each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Accept nothing more through this process's copies of the sockets."""
        self.https.close()
        self.http.close()

    def _url(self, scheme: str, listening: socket.socket) -> str:
        return f"{scheme}://{with_port(self.host, listening.getsockname()[1])}"


def check_public(settings: Settings) -> None:
    """Raise `ConfigurationError` if other hosts could connect and the settings do not explicitly allow it.

    Nor is an address of IPv4 taken in the form of IPv6: what Python's versions say of its loopback differs.
    """
    key = f"{settings.source_of('host')}host"
    if settings.host.startswith("["):
        raise ConfigurationError(
            f"{key}: {settings.host}: write an address without brackets: {settings.host.strip('[]')}"
        )
    if (mapped := _mapped(settings.host)) is not None:
        raise ConfigurationError(f"{key}: {settings.host}: write an address of IPv4 as such: {mapped}")
    if not settings.public_listener and not is_loopback(settings.host):
        raise ConfigurationError(
            f"{key}: {settings.host} is not a loopback address, so others can connect; "
            "say that they may: --public-listener, or public_listener = true"
        )


@contextlib.contextmanager
def bound(settings: Settings) -> Iterator[Listening]:
    """Listen while the block runs; raise `ConfigurationError` naming the setting whose port cannot be used.

    If the directory's own service uses the port, the error says so.
    """
    with contextlib.ExitStack() as sockets:
        https = sockets.enter_context(_bind(settings, settings.port, "port"))
        http = sockets.enter_context(_bind(settings, settings.http_port, "http_port"))
        yield Listening(settings.host, https, http)


@contextlib.contextmanager
def bound_for(settings: Settings, workers: int) -> Iterator[list[Listening]]:
    """Have a pair of sockets for each of *workers* while the block runs; raises like `bound`."""
    with contextlib.ExitStack() as sockets:
        https, http = (
            [sockets.enter_context(each) for each in _bind_shared(settings, port, setting, workers)]
            for port, setting in ((settings.port, "port"), (settings.http_port, "http_port"))
        )
        yield [Listening(settings.host, *pair) for pair in zip(https, http, strict=True)]


def _mapped(host: str) -> ipaddress.IPv4Address | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None


def _bind(settings: Settings, port: int, setting: str) -> socket.socket:
    host = settings.host
    with _explained(settings, port, setting), contextlib.ExitStack() as made:
        listening = made.enter_context(unbound(host))
        listening.bind((host, port))
        listening.listen(BACKLOG)
        made.pop_all()  # It is the caller's now.
    return listening


def _bind_shared(settings: Settings, port: int, setting: str, number: int) -> list[socket.socket]:
    host, found = settings.host, list[socket.socket]()
    with _explained(settings, port, setting), unbound(host) as alone:
        alone.bind((host, port))  # Rule 1: refused where anybody listens. It does not listen itself, so the others may.
        port = alone.getsockname()[1]
        with contextlib.ExitStack() as made:
            for _ in range(number):
                found.append(made.enter_context(unbound(host, shared=True)))
                found[-1].bind((host, port))
            made.pop_all()  # All of them are: they are the caller's now.
    return found


@contextlib.contextmanager
def _explained(settings: Settings, port: int, setting: str) -> Iterator[None]:
    host, of_host, of_port = settings.host, settings.source_of("host"), settings.source_of(setting)
    try:
        yield
    except OSError as error:
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            raise ConfigurationError(
                f"{of_host}host: cannot listen on {host}: {error.strerror}; give an address that this machine "
                "has, such as 127.0.0.1 or ::1, or 0.0.0.0 for all of IPv4, or :: for all"
            ) from error
        running = None
        if error.errno == errno.EADDRINUSE:
            running = served(settings.directory) or copied(settings.directory, port)
        if running is not None:
            raise ConfigurationError(f"{of_port}{setting} {port} on {host} is in use: {running}") from error
        whose = f" (ss -ltnp 'sport = :{port}' says by whom)" if error.errno == errno.EADDRINUSE else ""
        raise ConfigurationError(
            f"{of_port}{setting} {port} on {host} cannot be used: {error.strerror}{whose}; choose another, or 0 "
            "for a free one"
        ) from error
    except TypeError as error:  # What cannot be looked up at all: a label of more than 63 characters, a null character.
        raise ConfigurationError(
            f"{of_host}host: {host[:80]!r} is no name of a host ({error}): use an address"
        ) from error
