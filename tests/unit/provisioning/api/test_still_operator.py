"""Who loses his role, or his certificate, after he was let in and before his change is made, changes nothing."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import func, select

from provisioning.api import inventory
from provisioning.api.application import answering, new_application
from provisioning.api.metrics import Metrics
from provisioning.api.operator_application import new_operator_application
from provisioning.api.operator_checks import OperatorChecks
from provisioning.api.operators import OperatorServices
from provisioning.api.whole_revocations import PATH, RevocationResponder
from provisioning.config import Settings
from provisioning.enrolment.authentication import AuthenticatedOperator
from provisioning.enrolment.operator_roles import OperatorRoleService
from provisioning.operator_role import OperatorRole
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.revocation.feed import RevocationFeed
from provisioning.store import conditions
from provisioning.store.tables import audit_entries
from tests.support.asgi import through
from tests.support.crl import crl
from tests.support.fleet import Fleet
from tests.support.manufacturer import Manufacturer
from tests.support.operators import operator
from tests.support.ways import is_good, nothing, register
from tests.unit.provisioning.api.test_operator_roles import operator_routes

ACME = Manufacturer()
CHANGES: dict[tuple[str, str], dict[str, Any] | bytes] = {
    ("POST", "/v1/tokens"): {"device": "meter-1", "group": "north"},
    ("DELETE", "/v1/tokens/{number}"): {},
    ("POST", "/v1/voidings"): {"tokens": [1]},
    ("POST", "/v1/revocations"): {"device": "meter-17", "reason": "superseded"},
    ("POST", "/v1/suspensions"): {"device": "meter-17"},
    ("POST", "/v1/resumptions"): {"device": "meter-17"},
    ("POST", "/v1/decommissions"): {"device": "meter-17"},
    ("PUT", "/v1/operators/{name}"): {"role": "auditor"},
    ("POST", "/v1/groups"): {"name": "south", "ways": ["token"]},
    ("PATCH", "/v1/groups/{name}"): {"maximum_devices": 5},
    ("POST", "/v1/claims"): {"name": "batch", "group": "north", "maximum_devices": 5, "life_seconds": 3600},
    ("DELETE", "/v1/claims/{name}"): {},
    ("POST", "/v1/manufacturers"): {"name": "acme", "group": "north", "certificate": Manufacturer().pem},
    ("PATCH", "/v1/manufacturers/{name}"): {"lapsed_lists": "accept"},
    ("DELETE", "/v1/manufacturers/{name}"): {},
    ("POST", "/v1/manufacturers/{name}/lists"): crl(ACME.held),
    ("DELETE", "/v1/manufacturers/{name}/lists/{sha256}"): {},
    ("POST", "/v1/groups/{group}/listed"): {"devices": [{"name": "meter-2"}]},
    ("DELETE", "/v1/groups/{group}/listed/{name}"): {},
    ("DELETE", "/v1/operators/{name}/listed"): {},
    ("POST", "/v1/approvals/{number}/decision"): {"decision": "approve"},
    ("POST", "/v1/renewals/hasten"): {"every_group": True},
}
"""Every route that changes something, with a body that it takes."""
EVENTS = select(func.count()).select_from(audit_entries)


def changing() -> set[tuple[str, str]]:
    return {
        (method, route.path)
        for route in operator_routes()
        for method in route.methods or ()
        if method not in {"GET", "HEAD"}
    }


def test_all_that_changes_something_is_asked_for_here() -> None:
    assert set(CHANGES) == changing()


class Meanwhile(OperatorChecks):
    """Lets an operator in; something happens before he goes on."""

    def __init__(self, fleet: Fleet, happens: list[Callable[[], Awaitable[object]]]) -> None:
        super().__init__(fleet.database, fleet.clock)
        self._happens = happens

    async def operator(self, certificate: x509.Certificate | None, der: bytes) -> AuthenticatedOperator:
        found = await super().operator(certificate, der)
        if self._happens:
            await self._happens.pop()()
        return found


async def caller(fleet: Fleet) -> bytes:
    await operator(fleet, "boss")
    return (await operator(fleet, "anna")).public_bytes(Encoding.DER)


def api_of(fleet: Fleet, happens: list[Callable[[], Awaitable[object]]], **other: Any) -> Any:
    """Return the application, where what *happens* comes, once, between an operator's being let in and his change.

    *other*: services to be in the place of those here.
    """
    absent: Any = None
    metrics, settings = Metrics(), Settings()
    framework = new_operator_application(
        "1",
        answering(metrics),
        database=fleet.database,
        clock=fleet.clock,
        audit_key=b"k" * 32,
        profiles=fleet.groups._profiles,
        revocation=fleet.revocation,
        suspension=fleet.suspension,
        feed=RevocationFeed(fleet.database, 15),
        stall_seconds=15,
        publishers={},
        followers=absent,
        readiness={},
        trust_changed=nothing,
    )
    services: OperatorServices = dataclasses.replace(
        framework.state.operator_services, checks=Meanwhile(fleet, happens), **other
    )
    framework.state.operator_services = services
    app = new_application(settings, metrics, port="https", behind=framework)
    app.state.late = RevocationResponder(services, settings.maximum_body_bytes)
    return app


def scope_of(der: bytes, method: str, path: str, *headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {
        "type": "http",
        "method": method,
        "path": path.format(name="meter-17", group="north", number=1, sha256=64 * "0"),
        "headers": [(b"host", b"x"), (b"content-type", b"application/json"), *headers],
        "client": ("192.0.2.1", 1),
        "extensions": {"tls": {"client_cert_der": der}},
    }


async def test_who_may_only_read_changes_nothing_by_any_route(fleet: Fleet) -> None:
    """Not even what is asked for as a whole, past the framework."""
    await operator(fleet, "boss")
    der = (await operator(fleet, "eve", OperatorRole.AUDITOR)).public_bytes(Encoding.DER)
    await fleet.enrol()
    await register(fleet, ACME, name="meter-17")
    app = api_of(fleet, [])
    before = await fleet.database.read(lambda connection: connection.execute(EVENTS).scalar_one())
    for (method, path), body in CHANGES.items():
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = await through(app, scope_of(der, method, path), content)
        assert (answer.status_code, json.loads(bytes(answer.body))["code"]) == (403, "OPERATOR_ROLE"), (method, path)
    scope, responder = scope_of(der, "POST", PATH), app.state.late
    request = responder.read(scope, json.dumps({"device": "meter-17"}).encode())
    with pytest.raises(Exception, match="OPERATOR_ROLE"):
        await responder.respond(scope, request)
    assert await fleet.database.read(lambda connection: connection.execute(EVENTS).scalar_one()) == before


@pytest.mark.parametrize("key", [False, True], ids=["", "with a key"])
async def test_who_may_less_meanwhile_changes_nothing_by_any_route(fleet: Fleet, key: bool) -> None:
    der = await caller(fleet)
    await fleet.enrol()
    await register(fleet, ACME, name="meter-17")  # The name that paths have here.
    roles = OperatorRoleService(fleet.database, fleet.clock)
    happens: list[Callable[[], Awaitable[object]]] = []
    app = api_of(fleet, happens)
    for (method, path), body in CHANGES.items():
        if key and method != "POST":
            continue
        await roles.grant("anna", OperatorRole.ADMIN, by="boss")
        happens.append(lambda: roles.grant("anna", OperatorRole.AUDITOR, by="boss"))
        before = await fleet.database.read(lambda connection: connection.execute(EVENTS).scalar_one())
        headers = [(b"idempotency-key", path.encode())] if key else []
        answer = await through(
            app, scope_of(der, method, path, *headers), body if isinstance(body, bytes) else json.dumps(body).encode()
        )
        assert (answer.status_code, json.loads(bytes(answer.body))["code"]) == (403, "OPERATOR_ROLE"), (method, path)
        assert not happens
        after = await fleet.database.read(lambda connection: connection.execute(EVENTS).scalar_one())
        assert after == before + 1, f"{method} {path}: the change of the role, and nothing else"


@pytest.mark.parametrize("way", ["framework", "whole"])
async def test_who_is_revoked_meanwhile_revokes_nothing(fleet: Fleet, way: str) -> None:
    der = await caller(fleet)
    certificate = await fleet.enrol()
    body = json.dumps({"device": "meter-17"}).encode()

    async def asked(app: Any) -> Any:
        scope = scope_of(der, "POST", PATH)
        if way == "framework":
            return await through(app, scope, body)
        responder: RevocationResponder = app.state.late
        request = responder.read(scope, body)
        assert request is not None
        return await responder.respond(scope, request)

    taken = api_of(fleet, [lambda: fleet.revocation.revoke_device("anna", RevocationReason.KEY_COMPROMISE, by="boss")])
    if way == "framework":
        answer = await asked(taken)
        assert (answer.status_code, json.loads(bytes(answer.body))["code"]) == (403, "CERTIFICATE_REVOKED")
    else:
        with pytest.raises(Exception, match="CERTIFICATE_REVOKED"):
            await asked(taken)
    assert await is_good(fleet, certificate)


@pytest.mark.parametrize("kind", ["json", "csv"])
async def test_who_is_revoked_while_he_takes_an_export_gets_no_more_of_it(
    fleet: Fleet, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inventory, "EXPORT_PAGE", 1)
    der = await caller(fleet)
    await fleet.enrol()
    cut: list[bool] = []
    told: list[bytes] = []

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        if not cut and message.get("body"):
            told.append(message["body"])
            if len(told) == 2:
                await fleet.revocation.revoke_device("anna", RevocationReason.KEY_COMPROMISE, by="boss")

    scope = scope_of(der, "GET", "/v1/inventory/export")
    scope["extensions"]["connection"] = {"abort": lambda: cut.append(True)}
    scope |= {"raw_path": scope["path"].encode(), "query_string": f"format={kind}".encode(), "state": {}}
    await api_of(fleet, [])(scope, receive, send)
    assert cut == [True]
    assert len(told) == 2, "three certificates, a page each"
    assert not b"".join(told).endswith(b"]\n")


async def test_a_condition_is_of_one_request_and_nobody_else_s(fleet: Fleet) -> None:
    asked: list[object] = []
    with pytest.raises(AssertionError, match="of_one_request"):
        conditions.require(asked.append)
    answered = asyncio.Event()

    async def outlives() -> None:
        await answered.wait()
        await fleet.database.write(lambda _connection: None)

    with conditions.of_one_request():
        conditions.require(asked.append)
        await fleet.database.write(lambda _connection: None)
        assert len(asked) == 1
        task = asyncio.create_task(outlives())
        with conditions.of_one_request():
            await fleet.database.write(lambda _connection: None)
        await asyncio.sleep(0)
    answered.set()
    await task
    await fleet.database.write(lambda _connection: None)
    assert len(asked) == 1
