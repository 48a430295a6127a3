"""Each route of both ports, asked for with each kind of credential; what a route is for others, none of them has.

The routes are those of the code: a new one that nobody has thought of here fails.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from provisioning.api import est, ocsp
from provisioning.api.application import answering
from provisioning.api.health import health_routes
from provisioning.api.metrics import Metrics, metrics_routes
from provisioning.api.operator_application import DOCUMENT, new_operator_application
from provisioning.api.relying import relying_party_routes
from provisioning.metrics_exposure import MetricsExposure
from provisioning.pki.keys import generate_key, key_to_pem
from provisioning.pki.tls import CredentialFiles, client_context
from tests.support.enrolled import enrol
from tests.support.manufacturer import Manufacturer
from tests.support.provisioning import ProvisioningService
from tests.support.requests import csr_der
from tests.unit.provisioning.api.test_operator_roles import OPEN_TO_ENROLLERS

PUBLIC = "/v1/renewal-info/{identifier}"
FEED = "/v1/revocations/feed"
KNOWN = f"{FEED}/authorities"
FOLLOWERS = {"auditor", "enroller", "admin", "service", "broker"}
REFUSED = {
    "nobody": "CERTIFICATE_MISSING",
    "device": "ROLE",
    "service": "ROLE",
    "broker": "ROLE",
    "suspended device": "CERTIFICATE_SUSPENDED",
    "suspended operator": "CERTIFICATE_SUSPENDED",
    "revoked operator": "CERTIFICATE_REVOKED",
    "retired operator": "CERTIFICATE_REVOKED",
    "claim": "CERTIFICATE_UNKNOWN",
    "manufacturer's device": "CERTIFICATE_UNKNOWN",
    "manufacturer": "CERTIFICATE_UNKNOWN",
    "device on trial": "CERTIFICATE_SUSPENDED",
    "holder of a token": "CERTIFICATE_MISSING",
    "holder of a group's token": "CERTIFICATE_MISSING",
}
"""Who may ask for nothing at all, and what he hears."""
OPERATORS = {"auditor", "enroller", "admin"}
ABOUT_THE_CALLER = {*REFUSED.values(), "OPERATOR_ROLE", "CERTIFICATE_EXPIRED"}


@dataclass(frozen=True)
class Caller:
    """Somebody with a credential, and the name that it is for."""

    client: httpx.Client
    name: str
    certificate: x509.Certificate | None = None

    def asks_for(self, name: str, of: x509.Certificate | None = None) -> str:
        """Return a request for *name*, for a new key, with the alternative names of the certificate *of* somebody."""
        named = [] if of is None else [of.extensions.get_extension_for_class(x509.SubjectAlternativeName).value]
        return base64.b64encode(csr_der(names=[name], extensions=named)).decode()

    def est(self, operation: str, request: str, label: str = "") -> str:
        """Return the code of the answer, or its status if it is no refusal."""
        path = f"{est.PREFIX}/{label}{operation}"
        answer = self.client.post(path, content=request, headers={"Content-Type": "application/pkcs10"})
        return answer.text.partition(":")[0] if answer.is_error else str(answer.status_code)


@pytest.fixture(scope="module")
def callers(service: ProvisioningService, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Caller]]:
    directory = tmp_path_factory.mktemp("callers")
    certificates: dict[CredentialFiles | None, tuple[str, x509.Certificate | None]] = {}

    def made(path: str, **body: Any) -> dict[str, Any]:
        answer = service.post(f"/v1/{path}", **body)
        assert answer.status_code == HTTPStatus.CREATED, answer.text
        told: dict[str, Any] = answer.json()
        return told

    def given(name: str, pem: bytes) -> CredentialFiles:
        (path := directory / f"{name}.pem").touch(mode=0o600)
        path.write_bytes(pem)
        return CredentialFiles(path, path)

    def one(name: str, **order: str) -> CredentialFiles:
        enrolled = enrol(service, f"who-{name}", **order)[0]
        files = enrolled.write(directory)
        certificates[files] = enrolled.name, enrolled.certificate
        return files

    def operator(name: str, role: str = "admin") -> CredentialFiles:
        return one(name, role="operator", operator_role=role)

    found: dict[str, CredentialFiles | None] = {"nobody": None, "device": one("device")}
    found |= {role: operator(role, role) for role in OPERATORS}
    found |= {role: one(role, role=role) for role in ("service", "broker")}
    found["suspended device"] = one("held")
    found |= {f"{state} operator": operator(state) for state in ("suspended", "revoked", "retired")}
    service.suspend(device="who-held")
    service.suspend(device="who-suspended")
    service.revoke(device="who-revoked")
    made("decommissions", device="who-retired")
    manufacturer = Manufacturer("Who calls")
    made("groups", name="who-calls", ways=["claim", "manufacturer", "token"])
    made("manufacturers", name="who-calls", group="who-calls", certificate=manufacturer.pem)
    claim = made("claims", name="who-calls", group="who-calls", maximum_devices=2, life_seconds=86_400)
    found["claim"] = given("claim", f"{claim['private_key']}{claim['certificate']}".encode())
    found["manufacturer's device"] = given("idevid", manufacturer.idevid("SN1")[1])
    found["manufacturer"] = given("manufacturer", key_to_pem(manufacturer.key) + manufacturer.pem.encode())
    found |= {"holder of a token": None, "holder of a group's token": None}
    tokens = {
        "holder of a token": ("who-is-expected", service.token(device="who-is-expected", group="who-calls")),
        "holder of a group's token": ("who-is-new", service.token(group="who-calls")),
    }
    with ExitStack() as stack:

        def client(credential: CredentialFiles | None, auth: tuple[str, str] | None = None) -> httpx.Client:
            verify = client_context(service.bundle, credential, allow_tls12=True)
            return stack.enter_context(
                httpx.Client(base_url=service.https, verify=verify, timeout=30, trust_env=False, auth=auth)
            )

        told = {"claim": "who-claims", "manufacturer's device": "SN1"}
        callers = {}
        for kind, credential in found.items():
            auth = tokens.get(kind)
            name, certificate = certificates.get(credential, (auth[0] if auth else told.get(kind, "who-else"), None))
            callers[kind] = Caller(client(credential, auth), name, certificate)
        callers["device on trial"] = _on_trial(callers["claim"], client, given)
        yield callers


def _on_trial(claim: Caller, client: Any, given: Any) -> Caller:
    key = generate_key()
    body = base64.b64encode(csr_der(key, names=["who-tries"]))
    got = claim.client.post(f"{est.PREFIX}/simpleenroll", content=body, headers={"Content-Type": "application/pkcs10"})
    (certificate,) = pkcs7.load_der_pkcs7_certificates(base64.b64decode(got.content))
    files = given("trial", key_to_pem(key) + certificate.public_bytes(Encoding.PEM))
    return Caller(client(files), "who-tries", certificate)


def expected(caller: str, method: str, path: str) -> str | None:
    """Return the code with which *caller* is refused for who he is, None if he is not."""
    if path == KNOWN and caller in {*FOLLOWERS, "device"}:
        return None if caller == "broker" else "ROLE"
    if path == PUBLIC or caller == "admin":
        return None
    if path == FEED and caller in FOLLOWERS:
        return None
    if caller in REFUSED:
        return REFUSED[caller]
    open_to_him = method == "GET" or (caller == "enroller" and (method, path) in OPEN_TO_ENROLLERS)
    return None if open_to_him else "OPERATOR_ROLE"


def heard(client: httpx.Client, method: str, path: str) -> str | None:
    """Ask for something that there is not, or with a body that is none, and return the code of the answer."""
    url = re.sub(r"\{(number|sha256)\}", "1" * 6, path)
    body: dict[str, object] | None = None if method in {"GET", "DELETE"} else {}
    with client.stream(method, re.sub(r"\{\w+\}", "nobody-s", url), json=body) as answer:
        if answer.status_code < 300:
            return None
        answer.read()
        code: str = answer.json()["code"]
        return code


def test_who_may_ask_for_what(callers: dict[str, Caller]) -> None:
    assert set(callers) == OPERATORS | set(REFUSED), "each is expected to hear something"
    document = callers["nobody"].client.get(DOCUMENT).json()
    operations = [(method.upper(), path) for path, item in document["paths"].items() for method in item]
    assert len(operations) > 40
    laxer: list[object] = []
    stricter: list[object] = []
    for method, path in operations:
        for caller, who in callers.items():
            code = heard(who.client, method, path)
            because_of_him = code if code in ABOUT_THE_CALLER else None
            if because_of_him != (wanted := expected(caller, method, path)):
                (stricter if wanted is None else laxer).append((method, path, caller, code))
    assert laxer == []
    assert stricter == []


EVIDENCE: dict[str, str] = {
    "claim": "NAME_TAKEN",
    "manufacturer's device": "MANUFACTURER_CERTIFICATE",
    "manufacturer": "MANUFACTURER_CERTIFICATE",
    "holder of a token": "TOKEN_DEVICE",
    "holder of a group's token": "NAME_TAKEN",
}
"""Who may enrol once, and what he hears if he asks for the name of somebody else."""
LABEL = "meters/"
"""Of the devices' group, for which nobody here has evidence."""


def expected_of_est(kind: str, operation: str, label: str, *, own: bool) -> str:
    """Return what *kind* hears who asks for his *own* name, or for that of a device which is here."""
    nothing = kind == "nobody"
    if operation == "simplereenroll":
        if nothing or REFUSED.get(kind, "ROLE") not in {"ROLE", REFUSED["device on trial"]} or "suspended" in kind:
            return REFUSED[kind]
        if not own:
            return "CSR_SUBJECT_CHANGED"
        return "200" if not label or kind == "device" else "TOKEN_GROUP"
    if kind in EVIDENCE:
        if label:
            return "TOKEN_GROUP"
        if operation == "serverkeygen":
            return "SERVER_KEYS_REFUSED"
        return "200" if own and kind != "manufacturer" else EVIDENCE[kind]
    if operation == "serverkeygen" and label:
        return "SERVER_KEYS_REFUSED"
    return "TOKEN_MISSING" if nothing and not label else "NOT_ADMITTED"


def test_who_may_enrol_as_whom(callers: dict[str, Caller]) -> None:
    asking = ("serverkeygen", "simplereenroll", "simpleenroll")
    absent: Any = None
    responder = est.EstResponder(absent, enrolment=absent, authorities=absent, signer=absent)
    known = {*asking, "cacerts", "csrattrs"}
    assert known == set(est.OPERATIONS) == set(responder._unlabelled) == set(responder._labelled), "each is tried"
    device, wrong = callers["device"], []
    for kind, caller in callers.items():
        for reading in ("cacerts", "csrattrs"):
            assert caller.client.get(f"{est.PREFIX}/{reading}").status_code == HTTPStatus.OK
        other = device if caller is not device else callers["broker"]
        for operation in asking:
            for label in (LABEL, ""):
                for own, who in ((False, other), (True, caller)):
                    said = caller.est(operation, caller.asks_for(who.name, who.certificate), label)
                    if said != (wanted := expected_of_est(kind, operation, label, own=own)):
                        wrong.append((kind, operation, label, own, said, wanted))
    assert wrong == []


PLAIN = {
    "/ca/bundle.pem": HTTPStatus.OK,
    "/ca/{name}.crt": HTTPStatus.NOT_FOUND,
    "/crl/{name}.crl": HTTPStatus.NOT_FOUND,
    "/crl/{name}.pem": HTTPStatus.NOT_FOUND,
    "/healthz": HTTPStatus.OK,
    "/metrics": HTTPStatus.NOT_FOUND,
    "/readyz": HTTPStatus.OK,
}
"""The paths of the plain port beside OCSP's, and what they answer of something that there is not; metrics are off."""


def test_each_port_has_its_own_routes_and_no_others(callers: dict[str, Caller], service: ProvisioningService) -> None:
    absent: Any = None
    framework = new_operator_application(
        "1", answering(Metrics()), database=absent, clock=absent, audit_key=bytes(32), profiles={}, revocation=absent,
        suspension=absent, feed=absent, stall_seconds=1, publishers={}, followers=absent, readiness={},
        trust_changed=absent,
    )  # fmt: skip
    of_operators = {
        (method, each.path)
        for router in framework.routes
        for each in getattr(getattr(router, "original_router", None), "routes", [router])
        for method in each.methods - {"HEAD"}
    }
    told = callers["nobody"].client.get(DOCUMENT).json()["paths"]
    assert of_operators == {(method.upper(), path) for path, item in told.items() for method in item} | {
        ("GET", DOCUMENT)
    }, "who may ask for what is tried of each"
    plain = [*metrics_routes(absent, MetricsExposure.LOOPBACK), *relying_party_routes({}, {}), *health_routes({})]
    assert {each.path for each in plain} == set(PLAIN)
    with httpx.Client(base_url=service.http, trust_env=False, auth=("who-is-expected", "fgt_x")) as at_plain:
        for path, status in PLAIN.items():
            asked = path.format(name="nobody-s")
            answers = [at_plain.get(asked), at_plain.post(asked), callers["admin"].client.get(asked)]
            of_post = HTTPStatus.NOT_FOUND if path == "/metrics" else HTTPStatus.METHOD_NOT_ALLOWED
            assert [each.status_code for each in answers] == [status, of_post, HTTPStatus.NOT_FOUND], path
        assert at_plain.post(ocsp.PREFIX).status_code == HTTPStatus.UNSUPPORTED_MEDIA_TYPE
        assert callers["admin"].client.post(ocsp.PREFIX).status_code == HTTPStatus.NOT_FOUND
        of_devices = {("POST" if "enroll" in each else "GET", f"{est.PREFIX}/{each}") for each in est.OPERATIONS}
        for method, path in of_operators | of_devices:
            asked = re.sub(r"\{\w+\}", "1", path)
            assert at_plain.request(method, asked).status_code == HTTPStatus.NOT_FOUND, path
