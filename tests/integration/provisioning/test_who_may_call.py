"""Each route of both ports, asked for with each kind of credential; what a route is for others, none of them has.

The routes are those of the code: a new one that nobody has thought of here fails. There are a thousand requests: each
caller has one connection and the plainest of clients, which costs less than the service's answer.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

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
from provisioning.service.opened import utc_now
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

    connection: HTTPConnection
    name: str
    certificate: x509.Certificate | None = None
    token: str | None = None

    def ask(
        self, method: str, path: str, body: bytes | None = None, media_type: str = "application/json"
    ) -> HTTPResponse:
        """Return the answer, whose body has to be read before the next question."""
        headers = {"User-Agent": "python"}  # Who sends none does not get the text of each refusal.
        if body is not None:
            headers["Content-Type"] = media_type
        if self.token is not None:
            headers["Authorization"] = "Basic " + base64.b64encode(f"{self.name}:{self.token}".encode()).decode()
        self.connection.request(method, path, body, headers)
        return self.connection.getresponse()

    def hears(self, method: str, path: str) -> int:
        """Return the status of the answer."""
        with self.ask(method, path) as answer:
            answer.read()
            return answer.status

    def makes(self, path: str, **order: Any) -> dict[str, Any]:
        """Make something at the operators' API, and return what it says of it."""
        with self.ask("POST", f"/v1/{path}", json.dumps(order).encode()) as answer:
            told: dict[str, Any] = json.load(answer)
            assert answer.status in {HTTPStatus.OK, HTTPStatus.CREATED}, told
            return told

    def asks_for(self, name: str, of: x509.Certificate | None = None) -> str:
        """Return a request for *name*, for a new key, with the alternative names of the certificate *of* somebody."""
        named = [] if of is None else [of.extensions.get_extension_for_class(x509.SubjectAlternativeName).value]
        return base64.b64encode(csr_der(names=[name], extensions=named)).decode()

    def est(self, operation: str, request: str, label: str = "") -> str:
        """Return the code of the answer, or its status if it is no refusal."""
        with self.ask("POST", f"{est.PREFIX}/{label}{operation}", request.encode(), "application/pkcs10") as answer:
            text = answer.read().decode()
            return text.partition(":")[0] if answer.status >= HTTPStatus.BAD_REQUEST else str(answer.status)

    def enrols(self, name: str, path: Path) -> tuple[CredentialFiles, x509.Certificate]:
        """Enrol *name*, with this credential, and keep the new one in *path*."""
        key = generate_key()
        body = base64.b64encode(csr_der(key, names=[name]))
        with self.ask("POST", f"{est.PREFIX}/simpleenroll", body, "application/pkcs10") as answer:
            assert answer.status == HTTPStatus.OK, answer.read()
            (certificate,) = pkcs7.load_der_pkcs7_certificates(base64.b64decode(answer.read()))
        return kept(path, key_to_pem(key) + certificate.public_bytes(Encoding.PEM)), certificate


def kept(path: Path, pem: bytes) -> CredentialFiles:
    path.touch(mode=0o600)
    path.write_bytes(pem)
    return CredentialFiles(path, path)


@pytest.fixture(scope="module")
def callers(service: ProvisioningService, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Caller]]:
    directory = tmp_path_factory.mktemp("callers")
    address = urlsplit(service.https)
    enrolled: dict[CredentialFiles | None, tuple[str, x509.Certificate]] = {}
    with ExitStack() as stack:

        def connection(credential: CredentialFiles | None) -> HTTPSConnection:
            context = client_context(service.bundle, credential, allow_tls12=True)
            made = HTTPSConnection(str(address.hostname), address.port, timeout=60, context=context)
            return stack.enter_context(closing(made))

        founder, public = Caller(connection(service.operator), "operator"), connection(None)

        def token(**order: str) -> str:
            (made,) = founder.makes("tokens", **order)["tokens"]
            return str(made["token"])

        def one(name: str, **order: str) -> CredentialFiles:
            name = f"who-{name}"
            shown = token(device=name, **order)
            files, certificate = Caller(public, name, token=shown).enrols(name, directory / f"{name}.pem")
            enrolled[files] = name, certificate
            return files

        def operator(name: str, role: str = "admin") -> CredentialFiles:
            return one(name, role="operator", operator_role=role)

        found: dict[str, CredentialFiles | None] = {"nobody": None, "device": one("device", group="meters")}
        found |= {role: operator(role, role) for role in OPERATORS}
        found |= {role: one(role, role=role) for role in ("service", "broker")}
        found["suspended device"] = one("held", group="meters")
        found |= {f"{state} operator": operator(state) for state in ("suspended", "revoked", "retired")}
        founder.makes("suspensions", device="who-held")
        founder.makes("suspensions", device="who-suspended")
        founder.makes("revocations", device="who-revoked")
        founder.makes("decommissions", device="who-retired")
        manufacturer = Manufacturer("Who calls")
        founder.makes("groups", name="who-calls", ways=["claim", "manufacturer", "token"])
        founder.makes("manufacturers", name="who-calls", group="who-calls", certificate=manufacturer.pem)
        claim = founder.makes("claims", name="who-calls", group="who-calls", maximum_devices=2, life_seconds=86_400)
        found["claim"] = kept(directory / "claim", f"{claim['private_key']}{claim['certificate']}".encode())
        found["manufacturer's device"] = kept(directory / "idevid", manufacturer.idevid("SN1")[1])
        held = key_to_pem(manufacturer.key) + manufacturer.pem.encode()
        found["manufacturer"] = kept(directory / "manufacturer", held)
        told = {"claim": "who-claims", "manufacturer's device": "SN1"}
        callers = {}
        for kind, credential in found.items():
            name, certificate = enrolled.get(credential, (told.get(kind, "who-else"), None))
            callers[kind] = Caller(connection(credential), name, certificate)
        files, certificate = callers["claim"].enrols("who-tries", directory / "trial")
        callers["device on trial"] = Caller(connection(files), "who-tries", certificate)
        for kind, name, order in (
            ("holder of a token", "who-is-expected", {"device": "who-is-expected"}),
            ("holder of a group's token", "who-is-new", {}),
        ):
            callers[kind] = Caller(connection(None), name, token=token(group="who-calls", **order))
        yield callers


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


def heard(who: Caller, method: str, path: str) -> str | None:
    """Ask for something that there is not, or with a body that is none, and return the code of the answer."""
    url = re.sub(r"\{(number|sha256)\}", "1" * 6, path)
    body = None if method in {"GET", "DELETE"} else b"{}"
    with who.ask(method, re.sub(r"\{\w+\}", "nobody-s", url), body) as answer:
        if answer.status < HTTPStatus.MULTIPLE_CHOICES and path == FEED:
            who.connection.close()  # It has no end.
            return None
        content = answer.read()
        return None if answer.status < HTTPStatus.MULTIPLE_CHOICES else str(json.loads(content)["code"])


def described(who: Caller) -> dict[str, dict[str, Any]]:
    """Return the operations of the document, by path."""
    with who.ask("GET", DOCUMENT) as answer:
        paths: dict[str, dict[str, Any]] = json.load(answer)["paths"]
        return paths


def test_who_may_ask_for_what(callers: dict[str, Caller]) -> None:
    assert set(callers) == OPERATORS | set(REFUSED), "each is expected to hear something"
    paths = described(callers["nobody"])
    operations = [(method.upper(), path) for path, item in paths.items() for method in item]
    assert len(operations) > 40
    laxer: list[object] = []
    stricter: list[object] = []
    for method, path in operations:
        for caller, who in callers.items():
            code = heard(who, method, path)
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
    unlabelled = {path.removeprefix(f"{est.PREFIX}/") for path in responder._unlabelled}
    assert known == set(est.OPERATIONS) == unlabelled == set(responder._labelled), "each is tried"
    device, wrong = callers["device"], []
    for kind, caller in callers.items():
        for reading in ("cacerts", "csrattrs"):
            assert caller.hears("GET", f"{est.PREFIX}/{reading}") == HTTPStatus.OK
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
    routes: list[Any] = framework.routes
    of_operators = {(method, each.path) for each in routes for method in each.methods - {"HEAD"}}
    told = described(callers["nobody"])
    assert of_operators == {(method.upper(), path) for path, item in told.items() for method in item} | {
        ("GET", DOCUMENT)
    }, "who may ask for what is tried of each"
    lists = relying_party_routes({}, {}, utc_now)
    plain = [*metrics_routes(absent, MetricsExposure.LOOPBACK), *lists, *health_routes({})]
    assert {each.path for each in plain} == set(PLAIN)
    address = urlsplit(service.http)
    with closing(HTTPConnection(str(address.hostname), address.port, timeout=60)) as connection:
        at_plain, admin = Caller(connection, "who-is-expected", token="fgt_x"), callers["admin"]
        for path, status in PLAIN.items():
            asked = path.format(name="nobody-s")
            answers = [at_plain.hears("GET", asked), at_plain.hears("POST", asked), admin.hears("GET", asked)]
            of_post = HTTPStatus.NOT_FOUND if path == "/metrics" else HTTPStatus.METHOD_NOT_ALLOWED
            assert answers == [status, of_post, HTTPStatus.NOT_FOUND], path
        assert at_plain.hears("POST", ocsp.PREFIX) == HTTPStatus.UNSUPPORTED_MEDIA_TYPE
        assert admin.hears("POST", ocsp.PREFIX) == HTTPStatus.NOT_FOUND
        of_devices = {("POST" if "enroll" in each else "GET", f"{est.PREFIX}/{each}") for each in est.OPERATIONS}
        for method, path in of_operators | of_devices:
            asked = re.sub(r"\{\w+\}", "1", path)
            assert at_plain.hears(method, asked) == HTTPStatus.NOT_FOUND, path
