"""A revocation that has come whole has the same effect and answer as one that went through the framework."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from starlette.responses import Response
from starlette.types import Scope

from provisioning.api.application import answering, new_application
from provisioning.api.est import Answer, EstResponder
from provisioning.api.idempotency import AnswerBook
from provisioning.api.metrics import Metrics
from provisioning.api.operator_application import new_framework
from provisioning.api.operator_checks import OperatorChecks
from provisioning.api.operators import OperatorServices
from provisioning.api.revocations import router as revocation_router
from provisioning.api.tokens import router as token_router
from provisioning.api.whole_requests import WholeRequests
from provisioning.api.whole_revocations import PATH, RevocationResponder
from provisioning.config import Settings
from provisioning.enrolment.operator_roles import OperatorRoleService
from provisioning.operator_role import OperatorRole
from provisioning.revocation.feed import RevocationFeed
from tests.support.asgi import through
from tests.support.fleet import Fleet
from tests.support.operators import operator

JSON = (b"content-type", b"application/json")


@dataclass
class Api:
    """The operators' API, by both ways, called by one who presents a certificate."""

    fleet: Fleet
    app: Any
    metrics: Metrics
    der: bytes | None = None
    vouched: int = 0

    def vouch(self, _who: str) -> None:
        self.vouched += 1

    @property
    def whole(self) -> WholeRequests:
        whole: WholeRequests = self.app.state.whole
        return whole

    def scope(self, *headers: tuple[bytes, bytes]) -> Scope:
        tls = {"client_cert_der": self.der}
        return {
            "type": "http",
            "method": "POST",
            "path": PATH,
            "headers": [(b"host", b"x"), *(headers or (JSON,))],
            "client": ("192.0.2.1", 1),
            "extensions": {"tls": tls, "connection": {"vouch": self.vouch}},
        }

    async def directly(self, body: bytes, *headers: tuple[bytes, bytes]) -> Response | None:
        """Return the answer without the framework, None if that is not given."""
        answering = self.whole.answering(self.scope(*headers), body)
        return None if answering is None else await answering

    async def through_framework(self, body: bytes, *headers: tuple[bytes, bytes]) -> Response:
        return await through(self.app, self.scope(*headers), body)


async def api_of(fleet: Fleet, role: OperatorRole | None = OperatorRole.ADMIN) -> Api:
    """Return the API; who calls is an operator of *role*, None: nobody."""
    parts: Any = {"enrolment": None, "authorities": None, "signer": None}
    nothing: Any = None

    def devices(answer: Answer) -> EstResponder:
        return EstResponder(answer, **parts)

    metrics, settings = Metrics(), Settings()
    framework = new_framework("1", answering(metrics))
    app = new_application(settings, metrics, port="https", devices=devices, behind=framework)
    services = framework.state.operator_services = OperatorServices(
        fleet.database,
        fleet.token_service,
        fleet.revocation,
        fleet.suspension,
        OperatorRoleService(fleet.database, fleet.clock),
        RevocationFeed(fleet.database, 15),
        nothing,
        fleet.clock,
        AnswerBook(fleet.database, b"k" * 32, fleet.clock),
        OperatorChecks(fleet.database, fleet.clock),
        nothing,
        {},
    )
    framework.include_router(token_router)
    framework.include_router(revocation_router)
    app.state.whole.revocations = RevocationResponder(services, settings.maximum_body_bytes)
    der = None
    if role is not None:
        der = (await operator(fleet, f"op-{role}", role)).public_bytes(Encoding.DER)
    return Api(fleet, app, metrics, der)


def same(first: Response | None, second: Response) -> bool:
    assert first is not None
    assert first.raw_headers == second.raw_headers
    return (first.status_code, bytes(first.body)) == (second.status_code, bytes(second.body))


def neutral(answer: Response | None, *words: str) -> bytes:
    """Return a body without what differs from device to device."""
    assert answer is not None
    told = json.loads(bytes(answer.body))
    for item in told["revoked"]:
        for word in words:
            item[word] = None
    return bytes(answer.body).split(b'"serial"')[0] + json.dumps(told).encode()


@pytest.mark.parametrize(
    "asked",
    [
        {"device": "NAME"},
        {"device": "NAME", "reason": "keyCompromise", "invalidity_date": "2027-02-01T10:00:00+02:00"},
        {"serial": "SERIAL", "reason": "superseded"},
        {"certificate": "PEM", "reason": "superseded"},
        {"devices": ["NAME"], "serials": ["SERIAL"]},
        {"device": "NAME", "invalidity_date": 1767225600},
    ],
)
async def test_what_is_revoked_is_answered_the_same_the_first_time_and_again(
    fleet: Fleet, asked: dict[str, Any]
) -> None:
    api = await api_of(fleet)

    async def body(name: str) -> bytes:
        certificate = await fleet.enrol(name)
        pem = json.dumps(certificate.public_bytes(Encoding.PEM).decode())
        text = json.dumps(asked).replace("NAME", name).replace("SERIAL", f"{certificate.serial_number:X}")
        return text.replace('"PEM"', pem).encode()

    one, other = await body("meter-1"), await body("meter-2")
    first, second = await api.directly(one), await api.through_framework(other)
    assert first is not None
    assert (first.status_code, second.status_code) == (201, 201)
    assert neutral(first, "serial", "device", "sequence") == neutral(second, "serial", "device", "sequence")
    assert [name for name, _ in first.raw_headers] == [name for name, _ in second.raw_headers]
    again = await api.directly(other)
    assert again is not None
    assert again.status_code == 200
    assert bytes(again.body) == bytes(second.body), "what the framework did is told here"
    assert same(again, await api.through_framework(other))
    assert same(await api.directly(one), await api.through_framework(one))
    labels = {"port": "https", "method": "POST", "route": PATH, "status": "201"}
    assert api.metrics.registry.get_sample_value("fleet_provisioning_requests_total", labels) == 2


@pytest.mark.parametrize("asked", [{"device": "NAME"}, {"serial": "SERIAL"}, {"devices": ["NAME"]}])
async def test_a_reason_that_is_changed_is_answered_the_same(fleet: Fleet, asked: dict[str, Any]) -> None:
    api = await api_of(fleet)
    first: list[tuple[int, bytes]] = []
    second: list[tuple[int, bytes]] = []
    for name, answers, ask in (("meter-1", first, api.directly), ("meter-2", second, api.through_framework)):
        serial = f"{(await fleet.enrol(name)).serial_number:x}"
        for reason in ("superseded", "keyCompromise", "keyCompromise", "superseded"):
            body = json.dumps({**asked, "reason": reason}).replace("NAME", name).replace("SERIAL", serial)
            answer = await ask(body.encode())
            assert answer is not None
            answers.append((answer.status_code, neutral(answer, "serial", "device", "sequence")))
    assert first == second
    assert [status for status, _ in first] == [201, 201, 200, 200]
    assert [b"keyCompromise" in body for _, body in first] == [False, True, True, True]


@pytest.mark.parametrize(
    ("role", "asked", "status"),
    [
        (OperatorRole.ADMIN, {"device": "nobody"}, 404),
        (OperatorRole.ADMIN, {"serial": "12"}, 404),
        (OperatorRole.ADMIN, {"serial": "no serial"}, 400),
        (OperatorRole.ADMIN, {"certificate": "no certificate"}, 400),
        (OperatorRole.ADMIN, {"device": "meter-1", "reason": "certificateHold"}, 400),
        (OperatorRole.ADMIN, {"device": "op-admin"}, 409),
        (OperatorRole.ENROLLER, {"device": "meter-1"}, 403),
        (OperatorRole.AUDITOR, {"device": "meter-1"}, 403),
    ],
)
async def test_refusals_are_the_same_and_nothing_is_revoked(
    fleet: Fleet, role: OperatorRole, asked: dict[str, str], status: int
) -> None:
    api = await api_of(fleet, role)
    await fleet.enrol("meter-1")
    body = json.dumps(asked).encode()
    first, second = await api.directly(body), await api.through_framework(body)
    assert first is not None
    assert same(first, second)
    assert first.status_code == status
    labels = {"port": "https", "method": "POST", "route": PATH, "status": str(status)}
    assert api.metrics.registry.get_sample_value("fleet_provisioning_requests_total", labels) == 2
    assert not [each for each in fleet.told if each == "crl"]


async def test_a_device_and_who_was_revoked_may_not(fleet: Fleet) -> None:
    api = await api_of(fleet)
    body = b'{"device": "meter-1"}'
    api.der = (await fleet.enrol("meter-1")).public_bytes(Encoding.DER)
    assert same(first := await api.directly(body), await api.through_framework(body))
    assert first is not None
    assert first.status_code == 403
    gone = await api_of(fleet, OperatorRole.ENROLLER)
    api.der = (await operator(fleet, "op-2")).public_bytes(Encoding.DER)
    assert await api.directly(b'{"device": "op-enroller"}') is not None
    refused = await gone.directly(body)
    assert refused is not None
    assert same(refused, await gone.through_framework(body))
    assert (refused.status_code, b"CERTIFICATE_REVOKED" in bytes(refused.body)) == (403, True)


NOT_PLAINLY_VALID: list[tuple[bytes, tuple[tuple[bytes, bytes], ...]]] = [
    (b"", (JSON,)),
    (b"{", (JSON,)),
    (b"[]", (JSON,)),
    (b"null", (JSON,)),
    (b"[" * 100_000, (JSON,)),
    (b"{}", (JSON,)),
    (b'{"device": "a", "serial": "1"}', (JSON,)),
    (b'{"device": "a", "more": 1}', (JSON,)),
    (b'{"device": "a"}'.ljust(4 * 1024 + 1), (JSON,)),  # Who sends it is not known yet.
    (b'{"device": 7}', (JSON,)),
    (b'{"device": "a", "reason": "none"}', (JSON,)),
    (b'{"device": "\xff"}', (JSON,)),
    (b'{"device": "a", "invalidity_date": "2027-02-01T10:00:00"}', (JSON,)),
    (b'{"device": "a"}', ((b"content-type", b"text/plain"),)),
    (b'{"device": "a"}', ((b"content-type", b"application/json; charset=utf-8"),)),
    (b'{"device": "a"}', (JSON, JSON)),
    (b'{"device": "a"}', ((b"accept", b"*/*"),)),
    (b'{"device": "a"}', (JSON, (b"idempotency-key", b"one"))),
]


async def test_what_is_not_plainly_valid_is_the_framework_s(fleet: Fleet) -> None:
    api = await api_of(fleet)
    for body, headers in NOT_PLAINLY_VALID:
        assert await api.directly(body, *headers) is None, (body, headers)
    api.der = None
    assert await api.directly(b'{"device": "a"}') is None, "of who shows no certificate nothing is parsed"


@pytest.mark.parametrize(
    ("role", "code"),
    [
        (None, "CERTIFICATE_MISSING"),
        (OperatorRole.AUDITOR, "OPERATOR_ROLE"),
        (OperatorRole.ADMIN, "INVALID_REQUEST"),
    ],
)
@pytest.mark.parametrize("headers", [(JSON,), (JSON, (b"idempotency-key", b"one"))], ids=["bare", "key"])
async def test_a_body_is_read_for_whom_may_call(
    fleet: Fleet, role: OperatorRole | None, code: str, headers: tuple[tuple[bytes, bytes], ...]
) -> None:
    """A megabyte of JSON takes a tenth of a second, in which nobody is served."""
    api = await api_of(fleet, role)
    told = await api.through_framework(b'{"device": ', *headers)
    assert json.loads(bytes(told.body))["code"] == code
    assert api.vouched == (role is not None), "strangers make room for an operator"


async def test_only_the_path_of_revocations_is_taken(fleet: Fleet) -> None:
    whole = (await api_of(fleet)).whole
    size = Settings().maximum_body_bytes
    assert whole.takes(b"POST", PATH.encode(), size)
    assert not whole.takes(b"POST", PATH.encode(), size + 1)
    for other in ("/v1/tokens", f"{PATH}/", f"{PATH}?x", f"/x{PATH}", PATH.replace("s", "%73"), "/v1/suspensions"):
        assert not whole.takes(b"POST", other.encode(), 0)
