"""Validates a request's Host header (RFC 9112 §3.2)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import Final

_HOST: Final = re.compile(rb"(\[(?P<address>[0-9A-Fa-f:.]+)\]|[A-Za-z0-9\-._~%!$&'()*+,;=]*)(:[0-9]*)?")
"""A valid Host (RFC 9110 §7.2, RFC 3986 §3.2.2); it may be empty."""


def check_host(hosts: Sequence[bytes], http_version: str) -> None:
    """Raise ValueError unless *hosts*, the values of all Host headers, are valid for a request of *http_version*.

    The parser turns the error into 400.
    """
    if len(hosts) != 1 and (hosts or http_version == "1.1"):
        raise ValueError("not one Host header")
    for host in hosts:
        found = _HOST.fullmatch(host.rstrip(b" \t"))  # The parser leaves what may follow a value.
        if found is None:
            raise ValueError("the Host header is no host")
        if address := found["address"]:
            ipaddress.IPv6Address(address.decode())  # Raises ValueError, as whoever reads the URL would.
