"""Linking a request to its TLS connection (RFC 7030 §3.5): it shows that the sender holds the request's key now.

The request's challengePassword is the base64 of the connection's tls-unique value. If there is one it is always
verified, whether the group requires it or not. TLS 1.3 has no tls-unique (RFC 9266), and Python's ssl has no other
channel binding: there the request is refused with the reason. No TLS session is resumed here, which could make two
connections' tls-unique the same (RFC 7627 §5.4).
"""

from __future__ import annotations

import base64
import binascii
import hmac

from provisioning.enrolment.attempt import Attempt
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
        version = "this connection" if connection is None else connection.version
        raise Refused(
            Code.CSR_LINK,
            f"the request has a challengePassword, which must be tls-unique, and {version} has none: connect with TLS "
            f"1.2{_or_leave_out(group)}",
        )
    try:
        value = base64.b64decode(challenge, validate=True)
    except binascii.Error:
        value = b""
    if not hmac.compare_digest(value, connection.unique):
        raise Refused(
            Code.CSR_LINK,
            "the challengePassword is not the base64 of this connection's tls-unique: make the request anew on each "
            f"connection{_or_leave_out(group)}",
        )


def _or_leave_out(group: Group) -> str:
    return ", which this group requires" if group.tls_unique else ", or leave the attribute out"
