"""Each operation that the document of the operators' API names, asked for with each kind of certificate."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest

from provisioning.pki.keys import key_to_pem
from provisioning.pki.tls import CredentialFiles, client_context
from tests.support.enrolled import enrol
from tests.support.manufacturer import Manufacturer
from tests.support.provisioning import ProvisioningService
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
}
"""Who may ask for nothing at all, and what he hears."""
OPERATORS = {"auditor", "enroller", "admin"}
ABOUT_THE_CALLER = {*REFUSED.values(), "OPERATOR_ROLE", "CERTIFICATE_EXPIRED"}


@pytest.fixture(scope="module")
def callers(
    service: ProvisioningService, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, httpx.Client]]:
    directory = tmp_path_factory.mktemp("callers")

    def command(*arguments: str) -> None:
        done: subprocess.CompletedProcess[str] = service.command(
            *arguments, "--dir", str(service.dir), "--url", service.https
        )
        assert done.returncode == 0, done.stderr

    def given(name: str, pem: bytes) -> CredentialFiles:
        (path := directory / f"{name}.pem").touch(mode=0o600)
        path.write_bytes(pem)
        return CredentialFiles(path, path)

    def one(name: str, **order: str) -> CredentialFiles:
        return enrol(service, f"who-{name}", **order)[0].write(directory)

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
    assert service.post("/v1/decommissions", device="who-retired").status_code == 201
    manufacturer = Manufacturer("Who calls")
    (directory / "ca.pem").write_text(manufacturer.pem)
    command("group", "create", "who-calls", "--way", "claim", "--way", "manufacturer")
    command("manufacturer", "add", "who-calls", "--group", "who-calls", "--certificate", str(directory / "ca.pem"))
    claim = directory / "claim.pem"
    command("claim", "create", "who-calls", "--group", "who-calls", "--devices", "1", "--output", str(claim))
    found["claim"] = CredentialFiles(claim, claim)
    found["manufacturer's device"] = given("idevid", manufacturer.idevid("SN1")[1])
    found["manufacturer"] = given("manufacturer", key_to_pem(manufacturer.key) + manufacturer.pem.encode())
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(
                httpx.Client(
                    base_url=service.https,
                    verify=client_context(service.bundle, credential, allow_tls12=True),
                    timeout=30,
                    trust_env=False,
                )
            )
            for name, credential in found.items()
        }


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


def test_who_may_ask_for_what(callers: dict[str, httpx.Client]) -> None:
    assert set(callers) == OPERATORS | set(REFUSED), "each is expected to hear something"
    document = callers["nobody"].get("/v1/openapi.json").json()
    operations = [(method.upper(), path) for path, item in document["paths"].items() for method in item]
    assert len(operations) > 40
    laxer: list[object] = []
    stricter: list[object] = []
    for method, path in operations:
        for caller, client in callers.items():
            code = heard(client, method, path)
            because_of_him = code if code in ABOUT_THE_CALLER else None
            if because_of_him != (wanted := expected(caller, method, path)):
                (stricter if wanted is None else laxer).append((method, path, caller, code))
    assert laxer == []
    assert stricter == []
