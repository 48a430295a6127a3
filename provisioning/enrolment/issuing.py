"""The CA that issues now, and those of its CRL shards that new certificates belong to: always taken together."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import structlog
from sqlalchemy.engine import Connection

from provisioning.ca.issuer import Issuer
from provisioning.errors import Code, Refused
from provisioning.program.moments import shown_minute
from provisioning.store import authorities, lost_ends
from provisioning.store.crl_shards import CrlShard

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Issuing:
    """What one issuance uses from start to end, even if another CA becomes active meanwhile."""

    issuer: Issuer
    crl_shards: Sequence[CrlShard] = ()
    """The shards that a new certificate may belong to; without any, the issuer's single CRL covers all."""

    def choose_shard(self) -> CrlShard | None:
        """Return the CRL shard that the next certificate belongs to, None if there are no shards."""
        return secrets.choice(self.crl_shards) if self.crl_shards else None

    def check_life(self, now: datetime) -> None:
        """Raise `Refused` if the CA has expired, or is not valid yet: then the clock is wrong, or was."""
        begins = self.issuer.certificate.not_valid_before_utc
        if now < begins:
            log.error("the issuing CA is not valid yet: set the clock", code="CA_NOT_YET_VALID", begins=begins, now=now)
            raise Refused(
                Code.UNAVAILABLE,
                f"the service's clock says {shown_minute(now)}, and the issuing CA is valid from "
                f"{shown_minute(begins)}: an operator has to set the clock",
            )
        ends = self.issuer.certificate.not_valid_after_utc
        if now >= ends:
            log.error("the issuing CA has expired: activate its successor", code="CA_EXPIRED", ended=ends)
            raise Refused(
                Code.UNAVAILABLE,
                f"the issuing CA expired on {ends:%Y-%m-%d}: an operator has to activate its successor",
            )

    def check(self, connection: Connection) -> None:
        """Raise `Refused` unless the store says, in the transaction that records it, that the CA may still sign.

        It is refused as well if the store has lost that the CA was revoked, and this process knows of it.
        """
        lost_ends.of(connection).check_authority(self.issuer.key_id.hex())
        if not authorities.may_sign(connection, self.issuer.key_id):
            raise Refused(Code.UNAVAILABLE, "the issuing CA was retired or revoked a moment ago: try again")
