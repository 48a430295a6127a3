"""An issuing CA is revoked, with all that it has issued, and the first operator comes in again.

Theory
------
Whoever trusts the root hears of it by the root's CRL, so its key has to be here. The CA that issues has a successor
first: a fleet without one could not certify anybody again, nor the operator who mends it.

Rules
-----
1. What a revoked CA has issued is revoked with it, one by one: every relying party has a way to hear of it.
2. There is an admin with a good certificate afterwards; one who was suspended stays so while there is another.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from provisioning.authorities.authority_life import AuthorityLife
from provisioning.authorities.ceremony_transcript import operator_name
from provisioning.authorities.operator_restoration import issue_operator
from provisioning.authorities.own_credentials import OPERATOR_NAME
from provisioning.errors import ConfigurationError
from provisioning.pki.issued_by import is_issued_by
from provisioning.pki.revocation import RevocationReason
from provisioning.revocation.grounds import grounds_of
from provisioning.revocation.of_authority import RevokedAuthority, revoke_authority
from provisioning.store import operators
from provisioning.store.authorities import AuthorityKind, AuthorityState, StoredAuthority, described
from provisioning.store.devices import DeviceState


@dataclass(frozen=True, slots=True)
class AuthorityRevocation:
    """Ends issuing CAs, on the same directory and store as their ceremonies."""

    life: AuthorityLife

    async def revoke(
        self, name: str, reason: RevocationReason, invalidity_date: datetime | None = None
    ) -> RevokedAuthority:
        """Revoke an issuing CA and all that it has issued; return what that was. The root's CRL says so next.

        *invalidity_date* is since when its key is known or suspected to be in other hands (RFC 5280 §5.3.2).
        """
        grounds = grounds_of(reason, invalidity_date, self.life.clock())
        await self.to_revoke(name)
        by = operator_name()
        outcome = await self.life.database.write(
            lambda connection: revoke_authority(connection, name, grounds, by=by, now=self.life.clock())
        )
        await self.life.write_bundle()
        return outcome

    async def to_revoke(self, name: str) -> StoredAuthority:
        """Return the issuing CA called *name*; raise `ConfigurationError` if there is none, or it cannot be revoked."""
        found = await self.life.every()
        chosen = next((each for each in found if each.name == name and each.kind is AuthorityKind.ISSUING), None)
        if chosen is None:
            raise ConfigurationError(f"there is no issuing CA {name!r}; there are {described(found)}")
        if chosen.state is AuthorityState.REVOKED:
            raise ConfigurationError(f"{name} is revoked already")
        if chosen.state is AuthorityState.ACTIVE:
            raise ConfigurationError(
                f"{name} is the one that issues: begin a successor and activate it --without-waiting first, or end a "
                "line that no group is bound to"
            )
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

    async def renew_operator(self, revoked: RevokedAuthority) -> bool:
        """Issue the first operator's certificate again, if it was among what was revoked; return whether it was.

        While another admin can get in, one who is suspended stays so, and the role stays what it is; else there has to
        be one who can.
        """
        first = next((each.device for each in revoked.affected if each.device.name == OPERATOR_NAME), None)
        if first is None:
            return False
        others = await self.life.database.write(
            lambda connection: operators.usable_admins(connection, self.life.clock())
        )
        if others and first.state is not DeviceState.ACTIVE:
            return False
        await issue_operator(self.life, OPERATOR_NAME, as_admin=not others)
        return True
