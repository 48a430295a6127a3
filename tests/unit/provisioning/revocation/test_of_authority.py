"""An issuing CA is revoked with what it has issued: that one, once; who follows the feed hears the last of it."""

from __future__ import annotations

import json

import pytest
from sqlalchemy.engine import Connection

from provisioning.enrolment.attempt import TokenCredential
from provisioning.errors import ConfigurationError
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from provisioning.revocation.grounds import Grounds
from provisioning.revocation.of_authority import device_name, revoke_authority
from provisioning.store import audit, revocations
from provisioning.store.audit import Action
from tests.support.fleet import Fleet
from tests.support.requests import csr_der


async def revoke(fleet: Fleet, name: str) -> None:
    def transaction(connection: Connection) -> None:
        revoke_authority(connection, name, Grounds(RevocationReason.CA_COMPROMISE), by="boss", now=fleet.clock())

    await fleet.database.write(transaction)


async def test_the_issuing_ca_that_is_named_is_revoked_once(fleet: Fleet) -> None:
    backend = TokenCredential("backend", await fleet.token("backend", None, Role.SERVICE))
    await fleet.enrolment.enrol(csr_der(names=["backend"]), backend)
    await fleet.enrol("meter-1")
    for name in ("nobody", "root-ca"):
        with pytest.raises(ConfigurationError, match=f"there is no issuing CA '{name}'"):
            await revoke(fleet, name)
    await revoke(fleet, "issuing-ca")
    with pytest.raises(ConfigurationError, match="issuing-ca is revoked already"):
        await revoke(fleet, "issuing-ca")
    await fleet.revocation.portions.finish_left()
    events = await fleet.database.read(lambda connection: revocations.after(connection, 0, 9))
    assert [(each.device, str(each.reason)) for each in events] == [
        (device_name("issuing-ca"), "cACompromise"),
        ("meter-1", "unspecified"),
        ("backend", "unspecified"),
    ]
    entries = await fleet.database.read(lambda connection: audit.entries(connection, 0, 99))
    told = [
        (each.actor, each.subject, json.loads(each.details)) for each in entries if each.action == Action.CA_CHANGED
    ]
    facts = {"reason": "cACompromise", "certificates": "in the entries that follow", "state": "revoked"}
    assert told[-1] == ("boss", "issuing-ca", facts)
    (last,) = [each for each in entries if each.action == Action.REVOKED]
    whose = {"reason": "unspecified", "serials": [each.serial for each in events[1:]]}
    assert (last.actor, last.subject, json.loads(last.details)) == ("boss", "issuing-ca", whose)
