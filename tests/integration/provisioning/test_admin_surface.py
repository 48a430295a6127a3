"""What surrounds the operators' API: idempotency keys, limits, metrics, the OpenAPI document."""

from __future__ import annotations

import concurrent.futures
import json
import re
import time
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import httpx
import pytest

from provisioning.operator_role import OperatorRole
from provisioning.program.runtime import what_runs
from tests.support.broker_process import wait_until
from tests.support.curl import Curl, CurlAnswer
from tests.support.enrolled import enrol
from tests.support.provisioning import ProvisioningService

ON_BOTH_STORES = True

LAST_OPERATORS = "fleet_provisioning_operators_not_after_timestamp_seconds"
CHECKS = ("store", "issuing_ca", "ocsp_signer", "crls")
KEY = "8e03978e-40d5-43dd-bc93-6894a57f9324"


def post(api: httpx.Client, path: str, key: str, **body: object) -> httpx.Response:
    return api.post(path, json=body, headers={"Idempotency-Key": key})


def test_a_request_that_is_sent_again_is_answered_and_not_done_again(own_service: ProvisioningService) -> None:
    service = own_service
    with service.api() as api:
        first = post(api, "/v1/tokens", KEY, device="meter-1")
        again = post(api, "/v1/tokens", f'"{KEY}"', device="meter-1")
        assert (first.status_code, again.status_code) == (201, 201)
        assert again.json() == first.json()
        assert "idempotency-replayed" not in first.headers
        assert again.headers["idempotency-replayed"] == "true"
        assert api.get("/v1/status").json()["tokens"]["open"] == 1
        other = post(api, "/v1/tokens", KEY, device="meter-2")
        assert (other.status_code, other.json()["code"]) == (422, "IDEMPOTENCY_MISMATCH")
        refused = post(api, "/v1/revocations", KEY, device="nobody")
        assert refused.json()["code"] == "DEVICE_UNKNOWN"
        enrol(service, "meter-3")
        done = post(api, "/v1/revocations", KEY, device="meter-3")
        assert done.status_code == 201, "what was refused is not kept, and the path is another one"
        assert post(api, "/v1/revocations", KEY, device="meter-3").status_code == 201, "200 without the key"
        assert post(api, "/v1/tokens", "not a key", device="meter-1").status_code == 400
    service.stop()
    service.start()
    with service.api() as api:
        assert post(api, "/v1/tokens", KEY, device="meter-1").json() == first.json(), "after a restart too"


def test_of_many_at_once_with_one_key_one_is_done(own_service: ProvisioningService) -> None:
    def attempt(_number: int) -> tuple[int, str]:
        with own_service.api() as api:
            answer = post(api, "/v1/tokens", KEY, device="meter-1")
        return answer.status_code, answer.json().get("code") or answer.json()["tokens"][0]["token"]

    with concurrent.futures.ThreadPoolExecutor(6) as threads:
        answers = set(threads.map(attempt, range(6)))
    assert answers - {(409, "IDEMPOTENCY_BUSY")} == {each for each in answers if each[0] == 201}
    assert len([status for status, _ in answers if status == 201]) == 1


def test_an_answer_is_for_the_operator_who_asked(own_service: ProvisioningService) -> None:
    service = own_service
    (anna,) = enrol(service, "anna", role="operator", operator_role="auditor")
    with service.api() as api:
        token = post(api, "/v1/tokens", KEY, device="meter-1").json()["tokens"][0]["token"]
    (credential := service.dir.parent / "anna.pem").write_bytes(anna.pem)
    credential.chmod(0o600)
    answer = Curl(service.https, service.bundle).run(
        "/v1/tokens", "--cert", str(credential), "--header", f"Idempotency-Key: {KEY}",
        "--header", "Content-Type: application/json", data=b'{"device":"meter-1"}',
    )  # fmt: skip
    assert answer.status == 403
    assert token not in answer.text


def test_an_answer_is_for_a_role_that_still_gets_it(own_service: ProvisioningService) -> None:
    service = own_service
    (anna,) = enrol(service, "anna", role="operator", operator_role="admin")
    (credential := service.dir.parent / "anna.pem").write_bytes(anna.pem)
    credential.chmod(0o600)

    def ask(key: str, body: str) -> CurlAnswer:
        return Curl(service.https, service.bundle).run(
            "/v1/tokens", "--cert", str(credential), "--header", f"Idempotency-Key: {key}",
            "--header", "Content-Type: application/json", data=body.encode(),
        )  # fmt: skip

    for_operator, for_device = '{"device":"boss","role":"operator","operator_role":"admin"}', '{"device":"meter-1"}'
    first, second = ask("o", for_operator), ask("d", for_device)
    assert (first.status, second.status) == (201, 201)
    assert ask("o", for_operator).body == first.body
    with service.api() as api:
        assert api.put("/v1/operators/anna", json={"role": "enroller"}).status_code == 200
    refused = ask("o", for_operator)
    assert (refused.status, json.loads(refused.body)["code"]) == (403, "OPERATOR_ROLE")
    assert ask("o", for_operator).text == refused.text
    assert ask("d", for_device).body == second.body, "an enroller makes tokens for devices, so he hears of them"
    assert ask("o", '{"device":').status == 422, "what cannot be read is the framework's to word"


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProvisioningService]:
    directory = tmp_path_factory.mktemp("limited") / "fleet"
    settings = {
        "requests_per_second": 0.01,
        "ocsp_requests_per_second": 0.01,
        "request_burst": 4,
        "metrics": "loopback",
    }
    with ProvisioningService.copied(directory, settings) as running:
        yield running


def test_who_asks_too_often_is_told_when_to_come_back_and_others_are_served(limited: ProvisioningService) -> None:
    stranger = Curl(limited.https, limited.bundle)
    answers = [stranger.run("/.well-known/est/cacerts") for _ in range(6)]
    assert [each.status for each in answers[:4]] == [200] * 4
    assert answers[-1].status == 429
    wait = answers[-1].headers["retry-after"]
    assert 1 <= int(wait) <= 100, "100, less what has passed meanwhile"
    assert answers[-1].text == f"RATE_LIMITED: too many requests from you: wait {wait} s\n"
    with limited.api() as api:
        assert [api.get("/v1/status").status_code for _ in range(4)] == [200] * 4, "a certificate is a caller"
        refused = api.get("/v1/status")
    assert (refused.status_code, refused.json()["code"]) == (429, "RATE_LIMITED")
    assert 1 <= int(refused.headers["retry-after"]) <= 100
    relying = Curl(limited.http)
    assert [relying.run("/ocsp/x").status for _ in range(5)] == [200] * 4 + [429]
    told = re.fullmatch(
        r"RATE_LIMITED: too many requests from you: wait (\d+) s\n", relying.run("/ocsp", data=b"x").text
    )
    assert told is not None
    assert 1 <= int(told[1]) <= 100
    assert relying.run("/crl/issuing-ca.crl").status == 200


def test_metrics_count_by_route_and_code_and_tell_the_state_of_the_parts(limited: ProvisioningService) -> None:
    Curl(limited.http).run("/ca/nonsense.crt")
    Curl(limited.http).run("/crl/issuing-ca.crl")
    Curl(limited.http).run("/ocsp/M*", "--interface", "127.0.0.2")  # Not what another test may ask.

    def read() -> tuple[str, dict[str, str]]:
        text = Curl(limited.http).run("/metrics").text
        return text, dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))

    def checked() -> bool:
        """Whether all checks were done while the metrics were awaited: half a second, of a busy machine."""
        return all(read()[1][f'fleet_provisioning_ready{{check="{each}"}}'] == "1.0" for each in CHECKS)

    wait_until(checked, "every part is ready")
    text, samples = read()
    assert float(samples['fleet_provisioning_ocsp_answers_total{answer="malformed_request"}']) >= 1
    assert float(samples['fleet_provisioning_ocsp_answers_total{answer="nonce"}']) == 0, "there before it happens"
    assert float(samples['fleet_provisioning_refusals_total{code="NOT_FOUND"}']) >= 1
    assert float(samples['fleet_provisioning_refusals_total{code="TOKEN_USED"}']) == 0, "there before it happens"
    assert float(samples['fleet_provisioning_crl_number{list="issuing-ca"}']) >= 1
    assert float(samples["fleet_provisioning_feed_subscribers"]) == 0
    route = '{method="GET",port="http",route="/crl/{name}.crl",status="200"}'
    assert float(samples[f"fleet_provisioning_requests_total{route}"]) >= 1
    assert "nonsense" not in text
    ends = {name: value for name, value in samples.items() if "certificate_not_after_timestamp_seconds" in name}
    assert [re.findall('"(.*)"', name) for name in ends] == [["server"], ["root-ca"], ["issuing-ca"]]
    assert all(float(end) > time.time() for end in ends.values())
    assert float(samples["process_resident_memory_bytes"]) > 1e6
    what = ",".join(f'{name}="{value}"' for name, value in sorted(what_runs().items()))
    assert samples[f"fleet_provisioning_info{{{what}}}"] == "1.0"
    last = {role: float(samples[f'{LAST_OPERATORS}{{operator_role="{role}"}}']) for role in OperatorRole}
    assert last.pop(OperatorRole.ADMIN) > time.time()
    assert set(last.values()) == {0}
    assert float(samples["fleet_provisioning_audit_triggers_disabled"]) == 0


def test_metrics_are_off_unless_configured(service: ProvisioningService) -> None:
    where = (
        "NOT_FOUND: GET /metrics: metrics are on the plain HTTP port, unless the setting metrics is off, as it is by "
        "default\n"
    )
    for refused in (Curl(service.http).run("/metrics"), Curl(service.https, service.bundle).run("/metrics")):
        assert (refused.status, refused.text) == (404, where)


ELSEWHERE = [
    ("https", "/", "here are /.well-known/est for devices and /v1 for operators, which /v1/openapi.json describes"),
    ("https", "/healthz", "this is on the plain HTTP port"),
    ("https", "/crl/issuing-ca.crl", "this is on the plain HTTP port"),
    ("https", "/v1", "/v1/openapi.json lists what there is"),
    ("https", "/v10", "Not Found"),
    (
        "http",
        "/",
        "here are /ca/bundle.pem, /crl/NAME.crl, /ca/NAME.crt, /ocsp, /healthz and /readyz",
    ),
    ("http", "/.well-known/est/cacerts", "this is on the HTTPS port"),
    ("http", "/v1/devices", "this is on the HTTPS port"),
    ("http", "/favicon.ico", "Not Found"),
]


@pytest.mark.parametrize(("port", "path", "told"), ELSEWHERE)
def test_who_asks_where_nothing_is_is_told_where_it_is(
    service: ProvisioningService, port: str, path: str, told: str
) -> None:
    address = service.http if port == "http" else service.https
    refused = Curl(address, service.bundle).run(path)
    assert refused.status == HTTPStatus.NOT_FOUND
    said = json.loads(refused.text)["detail"] if path.startswith("/v1") else refused.text.removeprefix("NOT_FOUND: ")
    assert said.rstrip("\n") == f"GET {path}: {told}"


def test_who_speaks_http_to_the_https_port_is_told_so(service: ProvisioningService) -> None:
    refused = Curl(service.https.replace("https:", "http:")).run("/v1/status")
    assert refused.status == HTTPStatus.BAD_REQUEST
    assert refused.text == "INVALID_REQUEST: this port speaks HTTPS: write https:// in the URL\n"


def test_who_uses_another_method_is_told_those_that_the_document_names(service: ProvisioningService) -> None:
    with service.api() as api:
        paths = api.get("/v1/openapi.json").json()["paths"]
        for path, operations in paths.items():
            methods = {each.upper() for each in operations} | ({"HEAD"} if "get" in operations else set())
            methods |= {"PUT"} if path == "/v1/operators/me" else set()  # It is a name, too.
            answer = api.options(re.sub(r"\{\w+\}", "1", path))
            assert answer.status_code == 405, path
            assert answer.headers["Allow"] == ", ".join(sorted(methods)), path
            assert answer.json()["detail"].endswith(f": send {answer.headers['Allow']}")
    assert len(paths) > 20


def test_the_openapi_document_names_every_route_of_the_operators(service: ProvisioningService) -> None:
    with service.api() as api:
        document = api.get("/v1/openapi.json").json()
    assert document["openapi"].startswith("3.")
    operations = [(path, method) for path, item in document["paths"].items() for method in item]
    assert ("/v1/revocations", "post") in operations
    assert all(path.startswith("/v1/") for path, _ in operations)
    source = "".join(path.read_text() for path in Path("provisioning/api").glob("*.py"))
    declared = re.findall(r'@router\.(?:get|post|put|patch|delete)\(\s*"(/[^"]+)"', source)
    missing = {f"/v1{path}" for path in declared} - {path for path, _ in operations}
    assert {path for path in missing if not path.startswith(("/v1/crl", "/v1/ca", "/v1/healthz", "/v1/readyz"))} <= {
        "/v1/metrics", "/v1/cacerts", "/v1/simpleenroll", "/v1/simplereenroll",
        "/v1/{label}/cacerts", "/v1/{label}/simpleenroll", "/v1/{label}/simplereenroll",
    }  # fmt: skip
    assert "OPERATOR_ROLE" in document["components"]["schemas"]["Problem"]["properties"]["code"]["enum"]
    assert "HTTPValidationError" not in str(document), "we answer 400 with a problem document"


@pytest.mark.parametrize("kind", [{}, {"Content-Type": "text/plain"}])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/tokens", b'{"device": "of-a-page"}'),
        ("/v1/revocations", b'{"device": "of-a-page"}'),
        ("/v1/suspensions", b'{"device": "of-a-page"}'),
    ],
)
def test_what_a_browser_sends_for_any_web_page_changes_nothing(
    service: ProvisioningService, path: str, body: bytes, kind: dict[str, str]
) -> None:
    """With its operator's certificate; for a body that says it is JSON it asks first, and is not allowed."""
    with service.api() as api:
        answer = api.post(path, content=body, headers=kind)
        assert answer.status_code in {400, 415, 422}, answer.text
        asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
        allowed = api.options(path, headers=asked | {"Access-Control-Request-Headers": "content-type"})
        assert not [name for name in allowed.headers if name.startswith("access-control-")]
