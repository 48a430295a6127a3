"""A session and its subscriptions as rows of the store; `broker.process.recovery` reads what is written here."""

from __future__ import annotations

from broker.engine.stored_cas import cas_text, certificate_of, certificate_text
from broker.mqtt.subscription import Subscription
from broker.session.session import Session
from broker.store.batch import Row
from provisioning.pki.revocation import CertificateKey


def session_row(
    session: Session, ended_at: float | None, wall_offset: float, *, expiry_interval: int | None = None
) -> Row:
    """Return the columns of *session*, whose connection ended at *ended_at* (monotonic; None: it has not).

    *expiry_interval*, if given, is stored instead of its own.
    """
    will = session.will
    will_columns: Row = (None,) * 7
    left_with: Row = (None, None, None)
    if will is not None:
        message = will.message
        will_columns = (
            *(message.topic, message.payload, message.qos, message.retain, message.properties),
            will.expiry_interval,
            will.delay,
        )
        left_with = (*_certificate_columns(will.certificate, will.authorities), cas_text(will.above))
    return (
        session.client_id,
        session.owner.uri,
        session.v5,
        session.expiry_interval if expiry_interval is None else expiry_interval,
        None if ended_at is None else ended_at + wall_offset,
        *will_columns,
        *_certificate_columns(session.certificate, session.authorities),
        *left_with,
    )


def row_of_ended(session: Session) -> Row:
    """Return the columns of *session*, which has ended but is still needed: as expired, whatever a clock says."""
    return session_row(session, 0.0, 0.0, expiry_interval=1)


def _certificate_columns(certificate: CertificateKey | None, authorities: tuple[bytes, ...]) -> Row:
    text = None if certificate is None else certificate_text(certificate)
    return text, ":".join(map(bytes.hex, authorities)) or None


def certificate_in(text: str | None, authorities: str | None) -> tuple[CertificateKey | None, tuple[bytes, ...]]:
    """Return the certificate that two columns name, and the CAs above it by their keys. Raises ValueError."""
    above = () if authorities is None else tuple(map(bytes.fromhex, authorities.split(":")))
    return None if text is None else certificate_of(text), above


def subscription_row(subscription: Subscription, *, pending: int = 0) -> Row:
    """Return the columns of *subscription*, except its filter.

    *pending*: retained messages up to that number are still to be sent.
    """
    return (
        subscription.qos,
        subscription.no_local,
        subscription.retain_as_published,
        subscription.retain_handling,
        subscription.identifiers,
        pending,
    )
