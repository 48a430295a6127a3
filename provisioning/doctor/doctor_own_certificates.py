"""Checks of the service's own certificates, its HTTPS server's and the first operator's: the files, and their standing.

A command that was killed between revoking a CA and certifying the first operator again leaves an `operator.crt` that
looks well and is refused: only the store knows that.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import datetime
from typing import Final

from cryptography import x509
from sqlalchemy.engine import Connection

from provisioning.directory.files import OPERATOR, SERVER, AuthorityFiles, read_certificate
from provisioning.doctor.doctor_finding import Finding, failed, ok, warning
from provisioning.errors import ConfigurationError
from provisioning.pki.extension import UNREADABLE
from provisioning.pki.issued_by import is_issued_by
from provisioning.pki.keys import KeyFileError, load_key, spki_fingerprint
from provisioning.pki.revocation import certificate_key
from provisioning.program.given_file import PEM_BYTES, contents_of
from provisioning.program.moments import shown_minute
from provisioning.store import certificates
from provisioning.store.certificates import CertificateState

_CHECK: Final = "certificates"
_REMEDIES: Final = {
    SERVER: "restart the service: it renews its own certificate",
    OPERATOR: "enrol again with a token (token create --role operator), or fleet-provisioning ca restore-operator",
}
_WITHDRAWN: Final = {CertificateState.REVOKED, CertificateState.SUSPENDED}


def certificate_findings(files: AuthorityFiles, now: datetime) -> Iterator[Finding]:
    """Yield the findings about the files: missing, of others, not of their keys, expiring."""
    if (wrong := _wrong_with_bundle(files)) is not None:
        yield failed(_CHECK, wrong, "restart the service: it writes the file again")
    good = []
    for name in _REMEDIES:
        if name == OPERATOR and not files.certificate(name).exists():  # Its owner may keep it elsewhere.
            continue
        finding = _wrong_with(files, name, now)
        if finding is None:
            good.append(name)
        else:
            yield finding
    if good:
        yield ok(_CHECK, f"not expiring soon: {', '.join(good)}")


def _wrong_with(files: AuthorityFiles, name: str, now: datetime) -> Finding | None:
    remedy = _REMEDIES[name]
    try:
        certificate = read_certificate(files.certificate(name))
    except ConfigurationError as error:
        unreadable = isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, FileNotFoundError)
        if unreadable:
            remedy = "give the file back to the service's user"
        elif name == SERVER:
            remedy = "restart the service: it issues itself another"
        return failed(_CHECK, str(error), remedy)
    if stranger := _of_others(files, name, certificate):
        return failed(_CHECK, stranger, remedy)
    if not files.key(name).exists():
        return _without_key(files, name)
    return _wrong_with_dates(name, certificate, now)


def _wrong_with_dates(name: str, certificate: x509.Certificate, now: datetime) -> Finding | None:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < begin:
        return failed(
            "clock",
            f"the clock says {shown_minute(now)}, before {name}.crt becomes valid ({begin:%Y-%m-%d %H:%M})",
            "set the clock: timedatectl set-ntp true",
        )
    if now >= end:
        return failed(_CHECK, f"{name}.crt expired on {shown_minute(end)}", _REMEDIES[name])
    if now > end - (end - begin) / 3:
        return warning(_CHECK, f"{name}.crt expires on {shown_minute(end)}", _REMEDIES[name])
    return None


def _without_key(files: AuthorityFiles, name: str) -> Finding:
    what = f"{files.key(name)} is missing beside {name}.crt"
    if name == SERVER:
        return failed(_CHECK, what, "restart the service: it issues itself another")
    return warning(
        _CHECK,
        f"{what}: fleet-provisioning status needs both, and whoever has taken the key is an operator",
        f"bring it back, or remove {name}.crt if its owner keeps both elsewhere; if it is lost, {_REMEDIES[name]}",
    )


def _wrong_with_bundle(files: AuthorityFiles) -> str | None:
    try:
        anchors = x509.load_pem_x509_certificates(contents_of(files.bundle, PEM_BYTES))
    except FileNotFoundError:
        return f"{files.bundle} is missing: commands and brokers have no trust anchors"
    except OSError as error:
        return f"{files.bundle} cannot be read: {error.strerror}"
    except UNREADABLE:
        return f"{files.bundle} holds no certificates: commands and brokers have no trust anchors"
    if not any(each in anchors for each in _own_cas(files)):
        return f"{files.bundle} holds no CA of {files.directory}: commands and brokers do not believe the service"
    return None


def _own_cas(files: AuthorityFiles) -> list[x509.Certificate]:
    cas = []
    for path in files.directory.glob("*.crt"):
        if path.stem not in {SERVER, OPERATOR} and path != files.bundle:
            with contextlib.suppress(ConfigurationError):  # Reported with the keys.
                cas.append(read_certificate(path))
    return cas


def _of_others(files: AuthorityFiles, name: str, certificate: x509.Certificate) -> str | None:
    """Return what is wrong with the certificate *name* if it is not this service's, None if it is."""
    if not any(is_issued_by(certificate, each) for each in _own_cas(files)):
        issuer = certificate.issuer.rfc4514_string()
        return f"{name}.crt was not issued by a CA of {files.directory}, but by {issuer!r}"
    try:
        key = load_key(files.key(name))
    except KeyFileError:
        return None  # Another check reports it.
    if spki_fingerprint(key.public_key()) != spki_fingerprint(certificate.public_key()):
        return f"{name}.crt does not match the key in {name}.key"
    return None


def standing_findings(connection: Connection, files: AuthorityFiles, now: datetime) -> Iterator[Finding]:
    """Yield a finding about each that is revoked or suspended: whoever presents it is refused."""
    for name, remedy in _REMEDIES.items():
        try:
            certificate = read_certificate(files.certificate(name))
        except ConfigurationError:  # Reported with the files.
            continue
        stored = certificates.find(connection, *certificate_key(certificate))
        if stored is None and name == OPERATOR and _of_others(files, name, certificate) is None:
            yield failed(_CHECK, f"{name}.crt is not in the database: whoever presents it is refused", remedy)
        elif stored is not None and (state := stored.state(now)) in _WITHDRAWN:
            yield failed(_CHECK, f"{name}.crt is {state}: whoever presents it is refused", remedy)
