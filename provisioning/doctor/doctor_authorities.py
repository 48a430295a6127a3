"""Checks of the fleet's CAs in the store: expiry, keys, CRLs, and brokers that do not know them.

Rules
-----
1. A retired CA is not checked, but that no other root vouches for a retired root's key. An issuing CA's key has to be
   here, and to be its: another machine may have made it, whose key is copied here before it issues. A root's need not
   be here; one that is has to be its.
2. The next CA is due when a third of a CA's life is left: certificates issued later are soon limited by its expiry.
3. A root's next CRL is due at half of the last one's life, as it is for the service: its key may have to be fetched.
4. If the audit log does not confirm the last ceremony, a CA that was revoked since may issue again
   (`provisioning.authorities.last_ceremony`). A CA that was announced since is not in the store: its files are here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from sqlalchemy.engine import Connection

from provisioning.authorities.authority import STRANGER_REMEDY, strangers
from provisioning.authorities.last_ceremony import REMEDY, LastCeremony
from provisioning.authorities.named_lists import named_lists
from provisioning.authorities.owed_lists import BY, unlisted, vouching_for
from provisioning.config import Settings
from provisioning.directory.files import AuthorityFiles
from provisioning.doctor.doctor_finding import Finding, failed, ok, warning
from provisioning.errors import ConfigurationError
from provisioning.pki.extension import extension
from provisioning.pki.own_directory import quoted
from provisioning.program.moments import shown_minute
from provisioning.signers.places import SignerPlaces
from provisioning.store import authorities, crls, known_authorities
from provisioning.store.authorities import DEFAULT_LINE, AuthorityKind, AuthorityState, StoredAuthority

_DUE: Final = 3
"""The next CA is due when this fraction (1/n) of the life is left."""


def authority_findings(connection: Connection, settings: Settings, now: datetime) -> Iterator[Finding]:
    """Yield the findings about each CA that is not retired."""
    files = AuthorityFiles(settings.directory)
    places = SignerPlaces(files, settings)
    good = []
    every = authorities.every(connection)
    for path in _strangers(files, every):
        yield failed(
            "CAs",
            f"{path} is not the certificate of that name in the database: the service does not start",
            STRANGER_REMEDY,
        )
    yield from _unknown(files, places, every)
    for each in every:
        if each.kind is AuthorityKind.CROSS or each.state is AuthorityState.RETIRED:
            continue
        if each.state.trusted and (each.kind is AuthorityKind.ISSUING or places.holds(each.name)):
            yield from _key(places, each)
        finding = _end(each, now) if each.issues or each.kind is AuthorityKind.ROOT else None
        if finding is not None:
            yield finding
        elif each.state is not AuthorityState.REVOKED:
            good.append(f"{each.name} ({each.state})")
        yield from _list(connection, each, now)
    yield from _believed(connection, every, now)
    yield from _addresses(connection, settings, every)
    for word in known_authorities.unknown(connection):
        if word.is_recent(now):
            yield warning(
                "brokers",
                f"{word.broker} does not know {word.authority} ({word.state}) and refuses its certificates, as it said "
                f"{shown_minute(word.said_at)}",
                "copy the current ca-bundle.crt to that broker's cafile; decommission a broker that no longer exists",
            )
    if good:
        yield ok("CAs", f"not expiring soon: {', '.join(good)}")


def ceremony_findings(connection: Connection, last: LastCeremony | None) -> Iterator[Finding]:
    """Yield a finding if the audit log does not know of the *last* ceremony."""
    if last is not None and (detail := last.unconfirmed(connection)) is not None:
        yield failed("CAs", detail, REMEDY)


def _key(places: SignerPlaces, ca: StoredAuthority) -> Iterator[Finding]:
    """Yield whether *ca* could not be used here; a key that does not open is said with all keys."""
    path = places.path(ca.name)
    bring = "from the machine where it was made, or restore it from the backup"
    if not places.holds(ca.name):
        what, remedy = "is not here", f"copy {path.name} here {bring}"
    else:
        try:
            if places.open(ca.name).public_key() == ca.certificate.public_key():
                return
        except ConfigurationError:
            return
        what = f"is not the one in {path}: another CA of that name was announced from another machine"
        remedy = f"move that file away, and copy {path.name} here {bring}"
    if ca.issues:
        yield failed("CAs", f"{ca.name} issues certificates, but its key {what}", remedy)
    elif ca.kind is AuthorityKind.ROOT:
        yield warning("CAs", f"the key of {ca.name} {what}: neither its next CRL nor a CA is signed here", remedy)
    elif ca.state is AuthorityState.ANNOUNCED:
        then = "a service here would refuse every device once that is activated"
        yield warning("CAs", f"{ca.name} is announced, and its key {what}: {then}", remedy)
    else:
        then = "a service here says nothing of what it has issued, neither by CRL nor by OCSP"
        yield warning("CAs", f"{ca.name} is retiring, and its key {what}: {then}", remedy)


def _strangers(files: AuthorityFiles, known: Sequence[StoredAuthority]) -> list[Path]:
    try:
        return strangers(files, known)
    except ConfigurationError:  # An unreadable one was reported with the keys.
        return []


def _unknown(files: AuthorityFiles, places: SignerPlaces, known: Sequence[StoredAuthority]) -> Iterator[Finding]:
    names = {each.name for each in known}
    for path in sorted(files.directory.glob("issuing-*.crt")):
        if path.stem not in names and places.holds(path.stem):
            yield warning(
                "CAs",
                f"{path} is of a CA whose key is here, and which the store does not know: it is a copy from before "
                "that was announced, or it is still to be",
                f"fleet-provisioning ca import {quoted(path)} announces it; if it was revoked, move both files away",
            )


def _end(ca: StoredAuthority, now: datetime) -> Finding | None:
    begin, end = ca.certificate.not_valid_before_utc, ca.certificate.not_valid_after_utc
    if ca.kind is AuthorityKind.ROOT:
        remedy = "fleet-provisioning ca root begin"
    else:
        remedy = "fleet-provisioning ca rollover begin" + ("" if ca.line == DEFAULT_LINE else f" --line {ca.line}")
    if now < begin:
        detail = f"the clock says {shown_minute(now)}, before {ca.name} becomes valid ({begin:%Y-%m-%d %H:%M})"
        return failed("clock", detail, "set the clock: timedatectl set-ntp true")
    if now >= end:
        return failed("CAs", f"{ca.name} expired on {shown_minute(end)}", remedy)
    if now > end - (end - begin) / _DUE:
        return warning("CAs", f"{ca.name} expires on {shown_minute(end)}", remedy)
    return None


def _list(connection: Connection, ca: StoredAuthority, now: datetime) -> Iterator[Finding]:
    crl = crls.newest(connection, ca.name)
    if crl is None:
        return
    if now >= crl.next_update:
        yield failed(
            "CRL",
            f"{ca.name}'s CRL expired on {shown_minute(crl.next_update)}: relying parties "
            "that check it refuse every certificate",
            "start the service; if it runs, its log says why: CRL not published",
        )
    elif ca.kind is AuthorityKind.ROOT and now >= crl.this_update + (crl.next_update - crl.this_update) / 2:
        yield warning(
            "CRL",
            f"{ca.name}'s next CRL is due: its last one expires on {shown_minute(crl.next_update)}, and relying "
            "parties that check it refuse every certificate then",
            f"bring the key of {ca.name} here while the service runs",
        )
    else:
        yield ok("CRL", f"{ca.name}'s is valid until {shown_minute(crl.next_update)} at least")


def _believed(connection: Connection, every: Sequence[StoredAuthority], now: datetime) -> Iterator[Finding]:
    """Yield which retired roots' keys are still good for something, as those that an earlier version has retired.

    By a list, too, that a root whose key was not here has not signed since.
    """
    retired = [each.name for each in every if each.kind is AuthorityKind.ROOT and each.state is AuthorityState.RETIRED]
    for name in retired:
        if crosses := [each.name for each in vouching_for(name, every)]:
            yield warning(
                "CAs",
                f"{name} is retired, and who has its key is still believed: {', '.join(crosses)} vouches for it",
                f"fleet-provisioning ca root retire {name}",
            )
        if owed := [each.name for each in unlisted(connection, name, every, now)]:
            roots = " and ".join(each.rpartition(BY)[2] for each in owed)
            yield warning(
                "CRL",
                f"{name} is retired, and no CRL of {roots} ends {', '.join(owed)} yet: relying parties that follow no "
                f"feed believe who has the key of {name}",
                f"fleet-provisioning ca root retire {name} --apart, with the key of {roots} and its passphrase; or "
                "start the service where that key opens",
            )


def _addresses(connection: Connection, settings: Settings, every: Sequence[StoredAuthority]) -> Iterator[Finding]:
    """Yield what relying parties find wrong that look for the CRL of a CA's certificate where that says."""
    if settings.public_http_url is None:  # Then devices' certificates name an address of this machine alone.
        return
    known = {each.name: each.certificate for each in every}
    for each in every:
        if each.kind is AuthorityKind.ROOT or not each.state.trusted:
            continue
        if extension(each.certificate, x509.CRLDistributionPoints) is None:
            if each.state in {AuthorityState.ANNOUNCED, AuthorityState.ACTIVE}:
                yield warning(
                    "CRL",
                    f"{each.name}'s certificate names no CRL: clients that check the whole path, as .NET's do, refuse "
                    "the certificates below it",
                    "if there are such clients, replace it: a CA that is signed here from now on names its root's CRL "
                    "(docs/ca-life.md)",
                )
            continue
        for url, (ca, is_issuer) in named_lists(each.certificate, settings, known).items():
            refused = "relying parties that check it refuse every certificate below"
            if not is_issuer:
                yield failed(
                    "CRL",
                    f"{each.name}'s certificate names {url}, which is the CRL of {ca} and not of its issuer: {refused}",
                    "replace it (docs/ca-life.md), with a CA whose certificate names its root's CRL or none",
                )
            elif crls.newest(connection, ca) is None:
                yield failed(
                    "CRL",
                    f"{each.name}'s certificate names {url}, and {ca} has no CRL: {refused}",
                    f"bring the key of {ca} here while the service runs",
                )
