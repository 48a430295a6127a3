"""Linking a request to its TLS connection (RFC 7030 §3.5): it shows that the sender holds the request's key now.

The request's challengePassword is the base64 of the connection's tls-unique value. If there is one it is always
verified, whether the group requires it or not. TLS 1.3 has no tls-unique (RFC 9266), and Python's ssl has no other
channel binding: there the request is refused with the reason. So is one on a TLS 1.2 session resumed without extended
master secret, whose tls-unique may be another connection's as well (RFC 7627 §5.4).
"""

from __future__ import annotations

import base64
import binascii
import hmac

from provisioning.enrolment.attempt import Attempt, TlsConnection
from provisioning.errors import Code, Refused
from provisioning.store.groups import Group


def check_link(attempt: Attempt, group: Group) -> None:
    """Raise `Refused` if the request is linked to another connection, or to none although *group* requires it."""
    challenge = attempt.request.challenge
    if challenge is None:
        if group.tls_unique:
            raise Refused(
                Code.CSR_LINK,
                f"group {group.name} wants requests linked to their TLS connection: put the base64 of tls-unique into "
                "the challengePassword, over TLS 1.2",
            )
        return
    connection = attempt.connection
    if connection is None or connection.unique is None:
        raise Refused(
            Code.CSR_LINK,
            "the request has a challengePassword, which must be tls-unique, and "
            f"{_without_unique(connection)}, or leave the attribute out",
        )
    try:
        value = base64.b64decode(challenge, validate=True)
    except binascii.Error:
        value = b""
    if not hmac.compare_digest(value, connection.unique):
        raise Refused(
            Code.CSR_LINK,
            "the challengePassword is not the base64 of this connection's tls-unique: make the request anew on each "
            "connection, or leave the attribute out",
        )


def _without_unique(connection: TlsConnection | None) -> str:
    """Return why there is no tls-unique, and the remedy."""
    if connection is not None and connection.version == "TLSv1.2":
        return (
            "that of a session resumed without extended master secret (RFC 7627) binds nothing: connect without "
            "resuming one"
        )
    version = "this connection" if connection is None else connection.version
    return f"{version} has none: connect with TLS 1.2"
