"""Which roots owe a CRL that ends a certificate by which they vouched for a retired root's key; what is signed here.

The certificate is revoked in the store with the root that is retired (`provisioning.authorities.root_life`); a relying
party that follows no feed learns it from the CRL of the root that vouched. That root's key has to sign it. Each may
have a passphrase of its own, and a command is given one.

Rules
-----
1. A root owes a list until its newest one has the certificate, or that has expired.
2. All lists that are owed can be signed here, or nothing is retired. Except for a root whose key was stolen
   (``--apart``): its end does not wait for every key, and as many are signed as can be, one at least.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Final

from cryptography import x509
from sqlalchemy.engine import Connection

from provisioning.authorities.authority import root_crl_plan
from provisioning.authorities.authority_life import AuthorityLife
from provisioning.ca.crl import CrlIssuer
from provisioning.errors import ConfigurationError
from provisioning.revocation.publisher import CrlPlan
from provisioning.store import authorities, crls
from provisioning.store.authorities import AuthorityState, StoredAuthority

BY: Final = "-by-"
"""In the name of a certificate between roots: whose key, by whom."""


def vouching_for(name: str, found: Sequence[StoredAuthority]) -> list[StoredAuthority]:
    """Return the certificates, not revoked, by which other roots that are trusted vouch for the key of *name*."""
    crosses = {f"{name}{BY}{each.name}" for each in authorities.trusted_roots(found)}
    return [each for each in found if each.name in crosses and each.state is not AuthorityState.REVOKED]


def unlisted(
    connection: Connection, name: str, found: Sequence[StoredAuthority], now: datetime
) -> list[StoredAuthority]:
    """Return the revoked certificates by which trusted roots vouched for *name*, which no CRL of theirs ends yet."""
    owed = []
    for root in authorities.trusted_roots(found):
        crosses = [each for each in found if each.name == f"{name}{BY}{root.name}"]
        for each in crosses:
            if each.state is not AuthorityState.REVOKED or each.certificate.not_valid_after_utc <= now:
                continue
            newest = crls.newest(connection, root.name)
            listed = None if newest is None else x509.load_der_x509_crl(newest.der)
            serial = each.certificate.serial_number
            if listed is None or listed.get_revoked_certificate_by_serial_number(serial) is None:
                owed.append(each)
    return owed


@dataclass(frozen=True, slots=True)
class OwedLists:
    """The CRLs that the roots of one directory owe."""

    life: AuthorityLife

    def signable(
        self, crosses: Sequence[StoredAuthority], found: Sequence[StoredAuthority], *, apart: bool
    ) -> tuple[list[CrlPlan], list[ConfigurationError]]:
        """Return the CRLs that can be signed here, and, if *apart*, why others cannot, unless that is all of them."""
        lists, unsigned = list[CrlPlan](), list[ConfigurationError]()
        for each in crosses:
            try:
                lists.append(self._plan_for(each, found))
            except ConfigurationError as error:  # Each root may have a passphrase of its own, and one can be given.
                if not apart:
                    raise
                unsigned.append(error)
        if unsigned and not lists:
            raise unsigned[0]
        return lists, unsigned

    def _plan_for(self, cross: StoredAuthority, found: Sequence[StoredAuthority]) -> CrlPlan:
        """Return the CRL that has to end *cross*; raise `ConfigurationError` unless it can be signed here."""
        _, signer = cross.name.split(BY)
        (certificate,) = [each.certificate for each in found if each.name == signer]
        task = f"{signer} vouches for that root's key by {cross.name} and has to sign a CRL that ends it"
        if not self.life.places.holds(signer):
            raise ConfigurationError(f"{task}, and the key of {signer} is not here: bring it here first")
        plan = root_crl_plan(self.life.settings, self.life.places, signer, certificate)
        try:
            key = self.life.places.open_for(signer, certificate)
        except ConfigurationError as error:
            raise ConfigurationError(f"{task}: {error} (a root may have its own: --passphrase-file)") from error
        return replace(plan, open_issuer=partial(_same, CrlIssuer(certificate, key)))


def _same(issuer: CrlIssuer) -> CrlIssuer:
    return issuer
