"""The content of an ``anchors_url``: checked, and kept on disk for the next start.

Theory
------
Whoever determines the anchors decides who is admitted, so an answer is trusted for one of two reasons
(`broker.settings.trust_settings`): its server was verified by a CA file for that URL alone, or each of its certificates
is named by its fingerprint in the configuration. The copy on disk is the last answer that was valid in every respect,
so a broker can start with yesterday's anchors while the URL is down.

Rules
-----
1. An answer is accepted or refused as a whole. It is refused if it is empty, too long, unreadable, contains a
   certificate that is not a CA's, or none that is valid today.
2. Of a pinned answer only the pinned certificates are used. Over http every one of them must be present, so that nobody
   on the network can add one or take one away.
3. The copy is private (0600) and replaced atomically. Its name depends on the URL and on the requirements for its
   answer: another URL or other pins start afresh. It is checked again whenever it is read.

Does not handle: lists of CAs withdrawn elsewhere; a URL whose server is taken over together with its key.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from broker.settings.trust_settings import TrustSettings
from provisioning.pki.certificate_message import certificates_in_message
from provisioning.pki.extension import UNREADABLE, UNUSABLE, check_readable, extension
from provisioning.pki.keys import replace_private
from provisioning.pki.panic import without_panic
from provisioning.pki.pem import pem_of
from provisioning.pki.shown_subject import shown_subject
from provisioning.pki.tls import TlsConfigurationError
from provisioning.program.durable_names import make_folder

MOST_BYTES = 1024 * 1024
MOST_ANCHORS = 200
_FOLDER = "anchors"


class AnchorsRefused(ValueError):
    """An answer that is not used; the text says why."""


class AnchorsNotFetched(TlsConfigurationError):
    """There is no copy yet, and thus no anchor."""


def copy_of(settings: TrustSettings, state_dir: Path) -> Path | None:
    """Return the path of the last good answer, None if the bundle has no URL."""
    if settings.anchors_url is None:
        return None
    demanded = [settings.anchors_url, str(settings.anchors_url_cafile), *sorted(settings.anchors_sha256)]
    return state_dir / _FOLDER / f"{settings.name}-{hashlib.sha256(repr(demanded).encode()).hexdigest()[:16]}.pem"


def read_copy(settings: TrustSettings, path: Path) -> list[x509.Certificate]:
    """Return the anchors of the last good answer. Raises `TlsConfigurationError`."""
    where = f"trust bundle {settings.name}"
    try:
        return anchors_in(settings, path.read_bytes(), None)
    except FileNotFoundError:
        raise AnchorsNotFetched(
            f"{where}: anchors_url: {settings.anchors_url} could not be fetched yet, and there is no copy of an "
            "earlier answer; make it answer, or name a file in anchors"
        ) from None
    except OSError as error:
        raise TlsConfigurationError(f"{where}: {path} cannot be read: {error.strerror}") from error
    except AnchorsRefused as error:
        raise TlsConfigurationError(f"{where}: {path} is damaged ({error}); remove it") from error


def keep(path: Path, anchors: Sequence[x509.Certificate]) -> None:
    """Replace the copy at *path*. Raises `OSError` or `provisioning.pki.keys.KeyFileError`."""
    make_folder(path.parent)
    replace_private(path, pem_of(*anchors))


def anchors_in(settings: TrustSettings, content: bytes, now: datetime | None) -> list[x509.Certificate]:
    """Return the anchors that *content*, an answer or a stored copy, gives the bundle of *settings*.

    *now* (UTC) is when it arrived; None: it is a copy, which may be outdated. Raises `AnchorsRefused`.
    """
    found = _certificates(content)
    if len(found) > MOST_ANCHORS:
        raise AnchorsRefused(f"{len(found)} certificates; {MOST_ANCHORS} are taken at most")
    anchors = list({each.fingerprint(SHA256()): each for each in found}.values())
    if settings.anchors_sha256:
        anchors = _pinned(settings, anchors)
    for each in anchors:
        if why := unreadable(each):
            raise AnchorsRefused(f"{shown_subject(each)} cannot be read: {why}")
        if not is_authority(each):
            raise AnchorsRefused(f"{shown_subject(each)} is not the certificate of a CA")
    if now is not None and not any(each.not_valid_before_utc <= now <= each.not_valid_after_utc for each in anchors):
        raise AnchorsRefused(f"none of {len(anchors)} certificates is valid on {now.astimezone(UTC):%Y-%m-%d}")
    return anchors


def unreadable(certificate: x509.Certificate) -> str:
    """Return why *certificate* cannot be an anchor, even if OpenSSL accepts it; empty: it is readable."""
    try:
        without_panic(check_readable, certificate)
    except UNUSABLE as error:
        return str(error) or type(error).__name__
    return ""


def is_authority(certificate: x509.Certificate) -> bool:
    """Whether *certificate* is a CA's."""
    constraints = extension(certificate, x509.BasicConstraints)
    if constraints is None:
        return certificate.issuer == certificate.subject  # An old root without that extension.
    return constraints.ca


def _pinned(settings: TrustSettings, found: Sequence[x509.Certificate]) -> list[x509.Certificate]:
    by_fingerprint = {each.fingerprint(SHA256()).hex(): each for each in found}
    pins = settings.anchors_sha256
    anchors = [by_fingerprint[pin] for pin in dict.fromkeys(pins) if pin in by_fingerprint]
    if not anchors:
        raise AnchorsRefused(f"anchors_sha256 names none of the {len(found)} certificates")
    missing = [pin for pin in pins if pin not in by_fingerprint]
    if missing and (settings.anchors_url or "").startswith("http://"):
        raise AnchorsRefused(f"the certificate {missing[0]} of anchors_sha256 is not there")
    return anchors


def _pem_certificates(content: bytes) -> list[x509.Certificate]:
    found = without_panic(x509.load_pem_x509_certificates, content)
    if len(found) != content.count(b"-----BEGIN"):  # Part of an answer would be a change of trust.
        raise AnchorsRefused("incomplete: a certificate is cut off, or there is other text")
    return found


def _pkcs7_certificates(content: bytes) -> list[x509.Certificate]:
    if content.count(b"-----BEGIN") > 1:  # Only the first would be read.
        raise AnchorsRefused("not whole: there is something else beside the PKCS #7")
    text = content.partition(b"-----BEGIN PKCS7-----")[2].partition(b"-----END PKCS7-----")[0]
    return certificates_in_message(base64.b64decode(b"".join(text.split()), validate=True))


def _certificates(content: bytes) -> list[x509.Certificate]:
    """Return the certificates in *content*: PEM, DER, or PKCS #7 in PEM, DER or base64 (RFC 7030 §4.1.3)."""
    if not content.strip():
        raise AnchorsRefused("an empty answer")
    try:
        if b"-----BEGIN PKCS7" in content:
            return _pkcs7_certificates(content)
        if b"-----BEGIN" in content:
            return _pem_certificates(content)
        der = content if content[:1] == b"\x30" else base64.b64decode(b"".join(content.split()), validate=True)
        try:
            return [without_panic(x509.load_der_x509_certificate, der)]
        except UNREADABLE:
            return certificates_in_message(der)
    except AnchorsRefused:
        raise
    except UNUSABLE as error:  # Over plain http anybody on the network can answer anything.
        raise AnchorsRefused("neither PEM nor PKCS #7 certificates") from error
