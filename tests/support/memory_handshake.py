"""A handshake in memory between a server's context and a client who presents whatever is in a PEM text."""

from __future__ import annotations

import contextlib
import ssl
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from provisioning.pki import resumed_exchange, resumption
from provisioning.pki.openssl import address_of
from provisioning.pki.tls import CredentialPem, client_context, verified_path


@dataclass(frozen=True)
class Outcome:
    """The path that the server has verified, in DER, or why it has refused."""

    path: list[bytes] = field(default_factory=list)
    refusal: str = ""


def shake_hands(
    server: ssl.SSLContext, anchors: str, pem: bytes, session: ssl.SSLSession | None = None
) -> tuple[Outcome, Any, ssl.SSLObject]:
    """Return what *server* says to a client with what is in *pem*, its side of the connection, and the client's."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = client_of(anchors, pem)
    client = context.wrap_bio(back, there, server_hostname="localhost", session=session)
    side = server.wrap_bio(there, back, server_side=True)
    try:
        for _ in range(3):
            with contextlib.suppress(ssl.SSLWantReadError):
                client.do_handshake()
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    except ssl.SSLCertVerificationError as error:
        return Outcome(refusal=error.verify_message), side, client
    except ssl.SSLError as error:
        return Outcome(refusal=str(error.reason)), side, client
    resumed_exchange.confirm(address_of(side))  # As `handshake_bounds` does.
    resumption.offer_ticket(address_of(side), resumed=bool(side.session_reused))
    side.write(b"in")
    assert client.read(2) == b"in"
    return Outcome(verified_path(side)), side, client


@cache
def client_of(anchors: str, pem: bytes) -> ssl.SSLContext:
    """Return the context of the client with what is in *pem*: the same each time, so that it can resume."""
    return client_context(anchors, CredentialPem(pem), classic_key_exchange=True)
