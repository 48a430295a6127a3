"""Checks whether the service's two ports are free, its own, or another program's.

A server is asked what it presents, and whether it is alive, without the environment's proxies; and as a proxy of the
settings asks it, if this machine is one.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import http.client
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from typing import Final
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.serialization import Encoding

from provisioning.config import SETTINGS_FILE, Settings
from provisioning.directory import whereabouts
from provisioning.directory.files import SERVER, AuthorityFiles, read_certificate
from provisioning.doctor.doctor_finding import Finding, failed, ok, warning
from provisioning.errors import ConfigurationError
from provisioning.pki.named_curves import refuse_own_curves
from provisioning.program.proxy_networks import networks
from provisioning.program.unbound_socket import unbound

_PROBE_SECONDS: Final = 2.0
_FIRST_UNPRIVILEGED: Final = 1024
_HEADER: Final = b"PROXY TCP4 127.0.0.1 127.0.0.1 1 1\r\n"


def port_findings(settings: Settings, files: AuthorityFiles) -> Iterator[Finding]:
    """Yield a finding about each port."""
    ours = functools.cache(functools.partial(_presents, settings, files))
    elsewhere = whereabouts.found(files.directory) if whereabouts.served(files.directory) is not None else None
    yield _port(settings.host, settings.port, "port", ours, elsewhere)
    # Another fleet's service is alive, too; without a fixed HTTPS port, there is no better sign.
    yield _port(
        settings.host,
        settings.http_port,
        "http_port",
        lambda: _is_alive(settings) and (not settings.port or ours()),
        elsewhere,
    )


def _port(host: str, port: int, setting: str, is_ours: Callable[[], bool], elsewhere: str | None) -> Finding:
    if not port:
        return ok("ports", f"{setting} is 0: a free one is chosen at each start")
    try:
        with unbound(host) as probe:
            probe.bind((host, port))
            probe.listen()  # A bound port that nobody listens on can be bound again.
            return ok("ports", f"{setting} {port} on {host} is free")
    except PermissionError:
        return failed(
            "ports",
            f"{setting} {port} on {host} needs a privilege",
            f"choose a port of {_FIRST_UNPRIVILEGED} or higher",
        )
    except OSError as error:
        if is_ours():  # Asked first: an address that moves between machines may be another's, with our service there.
            return ok("ports", f"{setting} {port} on {host}: the service runs there")
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            return failed(
                "ports",
                f"{setting} {port}: cannot listen on {host}: {error.strerror}",
                "set host to an address that this machine has, such as 127.0.0.1 or ::1",
            )
        if elsewhere is not None and setting == "port" and urlsplit(elsewhere).port == port:
            return warning(
                "ports",
                f"{setting} {port} on {host}: the service says that it runs there, and does not answer as such",
                "see its log; restart it",
            )
        if elsewhere is not None:
            return warning(
                "ports",
                f"{setting} {port} on {host} is used by another program, and the service runs at {elsewhere}",
                f"set {setting} in {SETTINGS_FILE} to the value that serve was given as a flag or in its environment",
            )
        return failed(
            "ports",
            f"{setting} {port} on {host} cannot be used: {error.strerror}",
            f"find the program that uses it: ss -ltnp 'sport = :{port}', or choose another {setting}",
        )


def _presents(settings: Settings, files: AuthorityFiles) -> bool:
    """Whether the server at the HTTPS port presents, and has the key of, this directory's certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # It is compared with the file.
    refuse_own_curves(context)
    try:
        ours = read_certificate(files.certificate(SERVER)).public_bytes(Encoding.DER)
        with (
            _connected(settings.host, settings.port, settings.proxy_protocol_from) as plain,
            context.wrap_socket(plain) as connected,
        ):
            return connected.getpeercert(binary_form=True) == ours
    except (OSError, ValueError, ConfigurationError):  # No TLS, no answer, or nothing to compare with.
        return False


def _is_alive(settings: Settings) -> bool:
    host, port = _reachable(settings.host), settings.http_port
    asking = http.client.HTTPConnection(host, port, timeout=_PROBE_SECONDS)
    try:
        with _connected(settings.host, port, settings.http_proxy_protocol_from) as connected:
            asking.sock = connected
            asking.request("GET", "/healthz")
            return asking.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):  # Nobody answers, or in another protocol.
        return False


@contextlib.contextmanager
def _connected(host: str, port: int, proxies: Sequence[str]) -> Iterator[socket.socket]:
    with socket.create_connection((_reachable(host), port), _PROBE_SECONDS) as connected:
        trusted = networks(proxies)
        if trusted is not None and connected.getsockname()[0] in trusted:
            connected.sendall(_HEADER)
        yield connected


def _reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
