"""Tokens that are asked for while their maker is being revoked."""

from __future__ import annotations

import asyncio
import json
import threading

import pytest
from sqlalchemy.engine import Connection

from provisioning.api.operators import PREFIX
from provisioning.pki.revocation_reason import RevocationReason
from tests.support.asgi import through
from tests.support.fleet import Fleet
from tests.support.operators import operator
from tests.unit.provisioning.api.test_whole_revocations import api_of

PATIENCE = 60


@pytest.mark.parametrize("revoked", [False, True])
async def test_who_is_revoked_while_he_asks_for_a_token_gets_none(fleet: Fleet, revoked: bool) -> None:
    api = await api_of(fleet)
    await operator(fleet, "another")
    scope = {**api.scope(), "path": f"{PREFIX}/tokens"}
    body = json.dumps({"device": "meter-1", "group": "north"}).encode()
    let_go = threading.Event()

    def hold(_connection: Connection) -> None:
        assert let_go.wait(PATIENCE)

    async def waiting(number: int) -> None:
        while fleet.database._writer._waiting < number:
            await asyncio.sleep(0)

    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:
        tasks.create_task(fleet.database.write(hold))
        await asyncio.sleep(0)
        if revoked:
            tasks.create_task(fleet.revocation.revoke_device("op-admin", RevocationReason.KEY_COMPROMISE, by="another"))
        await waiting(int(revoked) + 1)
        asked = tasks.create_task(through(api.app, scope, body))
        await waiting(int(revoked) + 2)  # He was let in.
        let_go.set()
        answer = await asked
    if revoked:
        assert (answer.status_code, json.loads(bytes(answer.body))["code"]) == (403, "CERTIFICATE_REVOKED")
    else:
        assert answer.status_code == 201
