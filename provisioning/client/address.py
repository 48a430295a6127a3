"""Checks addresses: whether one may be a provisioning service's, and whether it can be used at all.

A provisioning service's begins with ``https://``: over plain HTTP any listener could read an enrolment token, and
anyone who answers could fake the revocation feed.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import SplitResult, urlsplit

MAXIMUM_URL: Final = 500
"""Maximum length of a URL that an operator gives to the service."""
_SHOWN = 200
_HIGHEST_PORT = 65535


class NoAddress(ValueError):
    """The address cannot be used; the text says why."""


def check_address(url: str) -> None:
    """Raise `NoAddress` if httpx could not begin to connect; its own error differs for each reason, or is missing."""
    import httpx  # Late: programs without an address to check start without it.

    try:
        parts = httpx.URL(url)
        named, port = bool(parts.host), parts.port
        _ = parts.netloc, parts.raw_path  # As the request will say them: a zone of IPv6 has been left as it is.
    except (httpx.InvalidURL, UnicodeError) as error:  # UnicodeError: not a valid DNS name.
        raise NoAddress(str(error)) from error
    if not named:
        raise NoAddress("it names no host")
    if port is not None and not 0 <= port <= _HIGHEST_PORT:  # httpx accepts -1.
        raise NoAddress(f"there is no port {port}")


def given_url(url: str, called: str) -> tuple[SplitResult, str]:
    """Return the parts and the host of *url*, which an operator has given to the service; errors name it *called*.

    Raises ValueError with a sentence if it is no URL with a host, too long, or not in ASCII.
    """
    parts, host = with_host(url, called)
    if len(url) > MAXIMUM_URL or not url.isascii():
        raise ValueError(f"{called} is no URL")
    return parts, host


def with_host(url: str, called: str) -> tuple[SplitResult, str]:
    """Return the parts and the host of *url*, which errors name *called*. Raises ValueError if it has no host."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"{called} is no URL ({error})") from error
    if not url.isprintable() or not host or port == 0:
        raise ValueError(f"{called} is no URL")
    return parts, host


def misnamed(base_url: str) -> str | None:
    """Return why *base_url* cannot be a provisioning service's address, or None."""
    try:
        parts = urlsplit(base_url)
        named = parts.scheme == "https" and bool(parts.hostname) and parts.port != 0
        named = named and parts.username is None and base_url.isprintable()  # A password would be stored, and shown.
    except ValueError:  # Brackets without an address, or an invalid port.
        named = False
    return None if named else no_address(base_url, "give https://host:port")


def no_address(base_url: str, why: str) -> str:
    """Return the error text for the invalid *base_url*, shortened if it is long."""
    return f"{base_url[:_SHOWN]!r} is no address of a provisioning service: {why}"
