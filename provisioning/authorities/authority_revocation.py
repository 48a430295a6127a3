"""Revokes an issuing CA with all that it has issued, and restores the first operator's access.

Theory
------
Relying parties that trust the root learn of it from the root's CRL, so the root's key has to be here. The active CA
needs a successor first: a fleet without one could not certify anything, not even the operator who repairs it.

The CA is revoked by one short transaction, which later failures do not undo: the certificates that it has issued
follow, here or in the running service (`provisioning.revocation.of_authority`)::

    begin ─► the bundle without it ─► the first operator certified again ─► finish: all that it has issued, in portions

Rules
-----
1. All certificates of a revoked CA are revoked too, one by one: so every relying party can learn of it.
2. Afterwards there is an admin with a good certificate; a suspended one stays suspended if there is another.
3. Called again while something is left, it continues, with the first operator too: whoever was killed before that has
   cut off the one who repairs it. That also if meanwhile the running service has done the rest.
4. That it is not the active one is looked at again in the transaction: another host may activate it meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.engine import Connection

from provisioning.authorities.authority_life import AuthorityLife
from provisioning.authorities.ceremony_transcript import operator_name
from provisioning.authorities.operator_restoration import issue_operator
from provisioning.authorities.own_credentials import OPERATOR_NAME
from provisioning.errors import ConfigurationError
from provisioning.pki.issued_by import is_issued_by
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.revocation.grounds import grounds_of
from provisioning.revocation.of_authority import RevokedAuthority, begun, revoke_authority, revoked
from provisioning.revocation.portions import Portions
from provisioning.store import authorities, certificates_of_device, certificates_of_issuer, devices, operators
from provisioning.store.authorities import AuthorityKind, AuthorityState, StoredAuthority, described
from provisioning.store.certificates import StoredCertificate
from provisioning.store.devices import Device, DeviceState


@dataclass(frozen=True, slots=True)
class BegunRevocation:
    """A revoked CA whose certificates are still to be revoked."""

    authority: RevokedAuthority
    operator: Device | None
    """The first operator's record, if this has revoked the operator's certificate and there is no other yet."""
    again: bool = False
    """It was begun before, and not finished."""
    rest: bool = True
    """Certificates of the CA are still to be revoked."""


@dataclass(frozen=True, slots=True)
class AuthorityRevocation:
    """Ends issuing CAs, on the same directory and store as their ceremonies."""

    life: AuthorityLife

    async def begin(
        self, name: str, reason: RevocationReason, invalidity_date: datetime | None = None
    ) -> BegunRevocation:
        """Revoke an issuing CA: nothing that it has issued is good from now on. The root's next CRL says so.

        *invalidity_date* is since when its key is known or suspected to be compromised (RFC 5280 §5.3.2).
        """
        grounds = grounds_of(reason, invalidity_date, self.life.clock())
        await self.to_revoke(name)
        self.life.transcript.begin()
        by = operator_name()

        def transaction(connection: Connection) -> BegunRevocation:
            now = self.life.clock()
            if (left := _left(connection, name, now)) is not None:
                return left
            _check_not_active(name, authorities.every(connection, for_update=True))
            held = _held_by_first(connection, now)
            authority = revoke_authority(connection, name, grounds, by=by, now=now)
            loses = any(each.issuer_key_id == authority.issuer.key_id for each in held)
            return BegunRevocation(authority, devices.find(connection, OPERATOR_NAME) if loses else None)

        return await self.life.database.write(transaction)

    async def finish(self, revocation: BegunRevocation) -> Sequence[StoredCertificate]:
        """Revoke what the CA has issued, a portion at a time; return what that was, in the order of the feed."""
        authority, database = revocation.authority, self.life.database
        gives_way = database.url.get_backend_name() == "sqlite"
        portions = Portions(database, self.life.clock, lambda _changed: None, gives_way=gives_way)
        await portions.finish(authority.issuer)
        return await database.read(
            lambda connection: certificates_of_issuer.revoked_since(
                connection, authority.issuer.key_id, authority.sequence
            )
        )

    async def to_revoke(self, name: str) -> StoredAuthority:
        """Return the issuing CA called *name*; raise `ConfigurationError` if there is none, or it cannot be revoked."""
        found = await self.life.every()
        issuing = [each for each in found if each.kind is AuthorityKind.ISSUING]
        chosen = next((each for each in issuing if each.name == name), None)
        if chosen is None:
            raise ConfigurationError(f"there is no issuing CA {name!r}, only {described(issuing)}")
        if chosen.state is AuthorityState.REVOKED:
            if await self.life.database.write(lambda connection: _left(connection, name, self.life.clock())) is None:
                admins = ", ".join(sorted(await self._usable_admins()))
                access = f"{admins} can get in; if the files of that are lost" if admins else "no admin has access"
                raise ConfigurationError(
                    f"{name} is revoked already, with all that it has issued; {access}: ca restore-operator"
                )
            return chosen
        _check_not_active(name, found)
        root = next(
            (
                each
                for each in found
                if each.kind is AuthorityKind.ROOT and is_issued_by(chosen.certificate, each.certificate)
            ),
            None,
        )
        if root is None or not self.life.places.holds(root.name):
            raise ConfigurationError(
                f"the root that has signed {name} has to sign a CRL, and its key is not here: bring it back first"
            )
        return chosen

    async def renew_operator(self, revocation: BegunRevocation) -> bool:
        """Issue the first operator's certificate again, if this has revoked it; return whether it did.

        If another admin has access, a suspended first operator stays suspended, and the role unchanged; otherwise the
        first operator becomes an active admin.
        """
        first = revocation.operator
        if first is None:
            return False
        others = await self._usable_admins()
        if others and first.state is not DeviceState.ACTIVE:
            return False
        await issue_operator(self.life, OPERATOR_NAME, as_admin=not others)
        return True

    async def _usable_admins(self) -> set[str]:
        return await self.life.database.write(lambda connection: operators.usable_admins(connection, self.life.clock()))


def _check_not_active(name: str, found: Sequence[StoredAuthority]) -> None:
    """Raise `ConfigurationError` if the CA called *name* issues now: its line would be without one."""
    if any(each.name == name and each.issues for each in found):
        raise ConfigurationError(
            f"{name} is active: begin a successor and activate it --without-waiting first, or end "
            "a line that no group is bound to"
        )


def _left(connection: Connection, name: str, now: datetime) -> BegunRevocation | None:
    """Return what is left to do of the end of the CA called *name*; None: nothing, or it is not revoked."""
    found = revoked(connection, name)
    if found is None:
        return None
    first = devices.find(connection, OPERATOR_NAME)
    newest = None if first is None else certificates_of_device.newest(connection, first.id)
    lost = not _held_by_first(connection, now) and newest is not None and _has_cut_off(found, newest)
    if lost and first is not None and first.state is not DeviceState.ACTIVE:  # Rule 2.
        lost = not operators.usable_admins(connection, now, for_update=True)
    rest = begun(connection, name) is not None
    return BegunRevocation(found, first if lost else None, again=True, rest=rest) if lost or rest else None


def _held_by_first(connection: Connection, now: datetime) -> list[StoredCertificate]:
    first = devices.find(connection, OPERATOR_NAME)
    return [] if first is None else certificates_of_device.in_use(connection, first.id, now, timedelta())


def _has_cut_off(authority: RevokedAuthority, operator: StoredCertificate) -> bool:
    """Whether the CA's end is why the certificate is not good, and not its expiry, or a revocation of its own."""
    if operator.issuer_key_id != authority.issuer.key_id or operator.issuer_ended_at is None or operator.key_ended_at:
        return False
    own = operator.revocation
    return own is None or not own.reason.final or own.sequence > authority.sequence
