"""An address and a port as one text, the same in logs, URLs and answers, and the address out of it again.

An address of IPv6 is in brackets (RFC 3986 §3.2.2, RFC 5952 §6): ``2001:db8::7:883`` would be an address, too.
"""

from __future__ import annotations


def with_port(host: str, port: int) -> str:
    """Return both as one: ``192.0.2.7:883``, ``[2001:db8::7]:883``."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def without_port(address: str) -> str:
    """Return the host of what `with_port` made."""
    return unbracketed(address.rpartition(":")[0])


def unbracketed(host: str) -> str:
    """Return *host*, without the brackets that a URL puts around an address of IPv6."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host
