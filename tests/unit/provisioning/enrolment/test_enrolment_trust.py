"""Which foreign anchors TLS lets through for enrolment, while the store cannot be read."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import pytest
from sqlalchemy import text

from provisioning.enrolment.claims import ClaimOrder, ClaimService
from provisioning.enrolment.enrolment_trust import EnrolmentTrust
from provisioning.errors import Refused
from tests.support.fleet import Fleet


async def test_who_has_made_a_claim_gets_its_key_though_the_trust_cannot_be_read_now(fleet: Fleet) -> None:
    told: list[Sequence[bytes]] = []
    trust = EnrolmentTrust(fleet.database, fleet.clock, told.append)
    claims = ClaimService(fleet.database, fleet.clock, trust.keep_up)
    await fleet.database.write(lambda connection: connection.execute(text("ALTER TABLE manufacturers RENAME TO away")))
    with pytest.raises(Refused):
        await trust.refresh()
    issued = await claims.create(ClaimOrder("batch", "line", 2, timedelta(days=30)), by="admin")
    assert b"PRIVATE KEY" in issued.key_pem, "it is in no other answer, and the name is taken"
    assert not told
    await fleet.database.write(lambda connection: connection.execute(text("ALTER TABLE away RENAME TO manufacturers")))
    assert await trust.keep_up()
    assert told == [[issued.claim.der]]
