"""Role and group that a request leads to: all that it shows agrees on them, first and whenever it is renewed."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from cryptography import x509

from provisioning.enrolment.attempt import TlsConnection, TokenCredential
from provisioning.errors import Code, Refused
from provisioning.pki.role import Role
from tests.support.fleet import Fleet, successor_csr
from tests.support.manufacturer import Manufacturer
from tests.support.requests import NOON
from tests.support.ways import enrol, group, refusal, register


@dataclass
class Shown:
    """A token for a device of north, one for a service, and a device certificate that opens line."""

    north: TokenCredential
    service: TokenCredential
    idevid: x509.Certificate


@pytest.fixture
async def shown(fleet: Fleet) -> Shown:
    await group(fleet, "manufacturer", "token")
    acme = Manufacturer(begin=NOON)
    await register(fleet, acme)
    north = TokenCredential("meter-1", await fleet.token("meter-1", "north"))
    service = TokenCredential("billing", await fleet.token("billing", None, Role.SERVICE))
    return Shown(north, service, acme.idevid("meter-1")[0])


async def test_what_is_shown_is_for_one_group_and_one_role(fleet: Fleet, shown: Shown) -> None:
    assert await refusal(fleet, "meter-1", token=shown.north, certificate=shown.idevid) is Code.TOKEN_GROUP
    assert await refusal(fleet, "billing", token=shown.service, certificate=shown.idevid) is Code.TOKEN_GROUP
    await enrol(fleet, "meter-1", token=shown.north)
    await enrol(fleet, "billing", token=shown.service)


async def test_a_label_is_that_of_the_group_at_every_enrolment(fleet: Fleet, shown: Shown) -> None:
    assert await refusal(fleet, "meter-1", token=shown.north, label="line") is Code.TOKEN_GROUP
    assert await refusal(fleet, "meter-1", certificate=shown.idevid, label="north") is Code.TOKEN_GROUP
    assert await refusal(fleet, "billing", token=shown.service, label="line") is Code.TOKEN_GROUP, "it has no group"
    certificate = await enrol(fleet, "meter-1", token=shown.north, label="north")
    with pytest.raises(Refused, match="TOKEN_GROUP: meter-1 belongs to group north, not line: use its own label"):
        await fleet.enrolment.reenrol(successor_csr(certificate), certificate, "line")
    await fleet.enrolment.reenrol(successor_csr(certificate), certificate, "north")


async def test_a_group_s_link_to_the_connection_is_wanted_at_every_enrolment(fleet: Fleet, shown: Shown) -> None:
    certificate = await enrol(fleet, "meter-1", certificate=shown.idevid)
    await fleet.groups.change("line", {"tls_unique": True}, by="admin")
    connection = TlsConnection("TLSv1.2", b"twelve bytes")
    assert await refusal(fleet, "meter-1", certificate=shown.idevid, connection=connection) is Code.CSR_LINK
    with pytest.raises(Refused, match="CSR_LINK"):
        await fleet.enrolment.reenrol(successor_csr(certificate), certificate, connection=connection)
