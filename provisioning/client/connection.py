"""One kept-alive HTTPS connection pool to the provisioning service, shared by its three clients.

Rules
-----
1. Only the named trust anchors count: no system store, no proxy or other setting from the environment.
2. Only ``https://`` is used: over plain HTTP anyone on the path could read a token or fake the revocation feed.
3. The server must be the service: a broker or a device of the same CA is refused, whatever host names its certificate
   has, and so is another fleet's service if the client has an identity or was told its trust domain, and whoever does
   not prove that its certificate is not revoked (`provisioning.client.genuine_server`).
4. Redirects are not followed: a token or a certificate goes only to the named host
   (RFC 7030 §3.2.1 requires the user's consent to anything else).
5. The head of an answer is bounded (`provisioning.client.bounded_head`): whoever reads one calls `body_follows` when it
   is there.
"""

from __future__ import annotations

import socket
import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import httpx

from provisioning.client.address import NoAddress, check_address, misnamed, no_address
from provisioning.client.bounded_head import BoundedTransport
from provisioning.client.genuine_server import Refuse, genuine_server, trust_domain_of
from provisioning.client.network_words import causes, network_words
from provisioning.client.redirects import leave_unread_async
from provisioning.client.whole_answer import UnfitAnswer
from provisioning.pki.stapling import ask_for_staple
from provisioning.pki.tls import SPEAKS_NO_TLS, Credential, TlsConfigurationError, client_context, read_once
from provisioning.program.moments import shown_minute

CONNECT_TIMEOUT = 10.0
DEFAULT_TIMEOUT = 30.0
DEFAULT_CONNECTIONS = 16
_ABOUT_TIME = frozenset({9, 10})
"""OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED: the clock may be the cause."""
_ABOUT_NAMES = frozenset({62, 64})
"""X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH."""
_ALERT = "_ALERT_"
"""In OpenSSL's error for what a peer refuses, as in TLSV13_ALERT_CERTIFICATE_REQUIRED."""
UNKNOWN_CA: Final = "unknown ca"
"""The alert, in words, for a certificate under no CA that the server trusts."""
NAME_THE_ADDRESS = "name the first address of its ready line"
_ABOUT_ANCHORS = frozenset({18, 19, 20})
"""A self-signed certificate, alone or in the chain, and X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY."""


def open_pool(
    base_url: str,
    anchors: Path | str,
    credential: Credential | None,
    *,
    timeout: float = DEFAULT_TIMEOUT,
    connect_timeout: float = CONNECT_TIMEOUT,
    connections: int = DEFAULT_CONNECTIONS,
    trust_domain: str | None = None,
    refuse: Refuse | None = None,
) -> httpx.AsyncClient:
    """Return a client of the service at *base_url*; *timeout* bounds each wait for the network, in seconds.

    *connect_timeout*, if it is less, bounds the waits for TCP and for TLS.
    The service must be that of *trust_domain*; None: that of the identity in *credential*, or any if there is none.
    One whose path *refuse* gives a reason against is sent nothing.
    Raises `provisioning.pki.tls.TlsConfigurationError` if a file, or the address, cannot be used.
    """
    if (wrong := misnamed(base_url)) is not None:
        raise TlsConfigurationError(wrong)
    try:
        check_address(base_url)
    except NoAddress as error:
        raise TlsConfigurationError(no_address(base_url, str(error))) from error
    if credential is not None:
        credential = read_once(credential)
    context = client_context(anchors, credential, allow_tls12=True)
    if trust_domain is None and credential is not None:
        trust_domain = trust_domain_of(credential)
    context.sslobject_class = genuine_server(trust_domain, proves=ask_for_staple(context), refuse=refuse)
    return httpx.AsyncClient(
        base_url=base_url,
        transport=BoundedTransport(context, connections=connections, kept=connections),
        timeout=httpx.Timeout(timeout, connect=min(timeout, connect_timeout)),
        trust_env=False,
        follow_redirects=False,
        headers={"Accept-Encoding": "identity"},
        event_hooks={"response": [leave_unread_async]},
    )


def explain(base_url: str, error: httpx.HTTPError) -> str:
    """Return one sentence: which service could not be reached, and why."""
    if isinstance(error, UnfitAnswer):
        return f"the answer of the provisioning service at {base_url} is given up: {error}"
    for cause in causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            why = cause.verify_message
            if cause.verify_code in _ABOUT_TIME:
                why += f"; the clock here says {shown_minute(datetime.now(UTC))}"
            if cause.verify_code in _ABOUT_NAMES:
                why = f"{why.rstrip('.')}; give a URL with a name that it has"
            if cause.verify_code in _ABOUT_ANCHORS:
                why += "; are the anchors this service's ca-bundle.crt?"
            return f"the server at {base_url} is not the provisioning service that the trust anchors vouch for ({why})"
        if isinstance(cause, ssl.SSLError) and cause.reason in SPEAKS_NO_TLS:
            return f"the server at {base_url} is not the provisioning service: it speaks no TLS; {NAME_THE_ADDRESS}"
        if alert := _alert(cause):
            return f"the server at {base_url} refuses the connection by a TLS alert: {alert}"
    return f"the provisioning service at {base_url} does not answer: {_why_silent(error)}"


def _why_silent(error: httpx.HTTPError) -> str:
    for cause in causes(error):
        if isinstance(cause, socket.gaierror):
            return f"its host is not found ({cause.strerror}); correct the name in the URL"
        if isinstance(cause, ConnectionRefusedError):
            return f"nothing listens there; start it, or {NAME_THE_ADDRESS}"
        if isinstance(cause, ConnectionResetError) and isinstance(error, httpx.ConnectError):
            return f"it resets the connection, as what speaks no TLS does; {NAME_THE_ADDRESS}"
    why = network_words(error)
    if isinstance(error, httpx.ConnectTimeout):
        why += "; is it the service that listens there, and does it still run?"
    return why


def is_of_unknown_authority(error: httpx.HTTPError) -> bool:
    """Whether the server has refused the client's certificate because it trusts no CA above that.

    In TLS 1.3 that comes after the client's handshake. An alert within it may be anybody's on the way.
    """
    if isinstance(error, httpx.ConnectError):
        return False
    return any(_alert(cause) == UNKNOWN_CA for cause in causes(error))


def _alert(cause: BaseException) -> str:
    """Return the TLS alert by which the server refuses the connection, in words, if *cause* is that; else nothing."""
    reason = getattr(cause, "reason", None) if isinstance(cause, ssl.SSLError) else None  # Not OpenSSL's: without one.
    return str(reason or "").partition(_ALERT)[2].lower().replace("_", " ")
