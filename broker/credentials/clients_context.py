"""The TLS context of everything that clients and operators connect to: made at the start, and anew by a reload."""

from __future__ import annotations

import ssl
from pathlib import Path

import structlog

from broker.settings.config import BrokerConfig
from provisioning.pki import open_to_all
from provisioning.pki.polite_handshake import FullHandshake
from provisioning.pki.tls import ClientCertificate, CredentialPem, TlsConfigurationError, server_context

log = structlog.get_logger("broker")


def clients_context(config: BrokerConfig, credential: CredentialPem, key: Path, anchors: str) -> ssl.SSLContext:
    """Return a context that presents *credential*, whose key came from the file *key*, and trusts *anchors* (PEM).

    Raises `TlsConfigurationError`.
    """
    if (warning := open_to_all.told_of(key)) is not None:
        log.warning("private key readable for every user", code="KEY_OPEN", detail=warning)
    context = server_context(
        credential,
        anchors,
        client_certificate=ClientCertificate.REQUIRED,
        allow_tls12=config.allow_tls12,
        remembered_sessions=config.limits.max_connections,
        hybrid_resumption=config.hybrid_resumption,
    )
    refuse_no_authority(context, config.cafile)
    context.sslobject_class = FullHandshake  # Of the operators' door; the clients' listener uses none.
    return context


def refuse_no_authority(context: ssl.SSLContext, cafile: Path) -> None:
    """Raise `TlsConfigurationError` if *context*, which trusts what is in *cafile*, trusts no CA."""
    if not context.get_ca_certs():  # Bundles check each anchor themselves; here the wrong file was named.
        raise TlsConfigurationError(
            f"{cafile} holds no CA's certificate: name the file with those of the CAs that certify clients, or of "
            "their root"
        )
