"""The OpenAPI document as who makes a client of it finds it: all is told, and what is told is what is answered."""

from __future__ import annotations

import json
import re
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from provisioning.api.document_examples import EXAMPLES
from provisioning.api.document_operations import OPERATIONS, TAGS
from provisioning.api.document_words import FIELDS, FIELDS_OF, PARAMETERS
from tests.support.curl import Curl
from tests.support.enrolled import enrol
from tests.support.manufacturer import Manufacturer
from tests.support.openssl import OpensslDevice
from tests.support.provisioning import ProvisioningService
from tests.support.ways import listed

REFERENCE = "#/components/schemas/"


@pytest.fixture(scope="module")
def document(service: ProvisioningService) -> dict[str, Any]:
    """The document, as somebody without a certificate gets it."""
    answer = Curl(service.https, service.bundle).run("/v1/openapi.json")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    found: dict[str, Any] = json.loads(answer.body)
    return found


@pytest.fixture(scope="module")
def schemas(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["components"]["schemas"]
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def wrong(schemas: dict[str, Any], schema: dict[str, Any], value: object, where: str = "") -> list[str]:
    """Return what of *value* is not as *schema* says: fields that it does not name among it."""
    if "$ref" in schema:
        schema = schemas[schema["$ref"].removeprefix(REFERENCE)]
    if "anyOf" in schema:
        found = [wrong(schemas, each, value, where) for each in schema["anyOf"]]
        return [] if [] in found else [f"{where}: {value!r} is none of {len(found)}"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{where}: {value!r} is none of {schema['enum']}"]
    kinds: dict[str, type | tuple[type, ...]] = {
        "string": str, "integer": int, "boolean": bool, "null": type(None), "object": dict, "array": list,
    }  # fmt: skip
    if not isinstance(value, kinds[schema["type"]]):
        return [f"{where}: {value!r} is no {schema['type']}"]
    if schema.get("format") == "date-time" and not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", str(value)):
        return [f"{where}: {value!r} is no time"]
    problems: list[str] = []
    if isinstance(value, list):
        for number, each in enumerate(value):
            problems += wrong(schemas, schema["items"], each, f"{where}[{number}]")
    if isinstance(value, dict):
        fields = schema.get("properties", {})
        problems += [f"{where}.{name}: missing" for name in schema.get("required", ()) if name not in value]
        for name, each in value.items():
            told = fields.get(name, schema.get("additionalProperties") or None)
            problems += [f"{where}.{name}: not told"] if told is None else wrong(schemas, told, each, f"{where}.{name}")
    return problems


def test_who_calls_is_told_by_the_certificate(document: dict[str, Any]) -> None:
    (scheme,) = document["components"]["securitySchemes"].items()
    assert (scheme[1]["type"], document["security"]) == ("mutualTLS", [{scheme[0]: []}])
    open_to_all = [name for name, operation in operations(document) if operation.get("security") == []]
    assert open_to_all == ["GET /v1/renewal-info/{identifier}"]
    roles = {name: operation.get("x-operator-role") for name, operation in operations(document)}
    assert (roles["POST /v1/tokens"], roles["GET /v1/tokens"], roles["PATCH /v1/groups/{name}"]) == (
        "enroller", "auditor", "admin"
    )  # fmt: skip
    assert [name for name, role in roles.items() if role is None] == [
        "GET /v1/revocations/feed", "PUT /v1/revocations/feed/authorities", *open_to_all
    ]  # fmt: skip
    assert document["servers"][0]["url"] == "/"


def test_every_operation_has_a_name_of_its_own_and_says_what_it_is_about(document: dict[str, Any]) -> None:
    told = dict(operations(document))
    assert set(told) == set(OPERATIONS)
    names = [operation["operationId"] for operation in told.values()]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch("[a-z]+(_[a-z]+)*", name) for name in names)
    assert {tag for operation in told.values() for tag in operation["tags"]} == set(TAGS)
    assert [each["name"] for each in document["tags"]] == list(TAGS)
    for name, operation in told.items():
        assert operation["summary"], name
        assert "``" not in operation["description"], name
        for status in ("4XX", "5XX"):
            refused = operation["responses"][status]
            assert refused["content"] == {"application/problem+json": {"schema": {"$ref": f"{REFERENCE}Problem"}}}
            assert "Retry-After" in refused["headers"]
        keyed = any(each["name"] == "Idempotency-Key" for each in operation.get("parameters", ()))
        assert keyed is name.startswith("POST "), name
        for status, answer in operation["responses"].items():
            assert answer["description"], name
            assert "content" in answer or status == "204", name


def test_every_field_and_parameter_has_words_and_no_words_are_left_over(
    document: dict[str, Any], schemas: dict[str, Any]
) -> None:
    fields = {(name, field) for name, schema in schemas.items() for field in schema.get("properties", ())}
    for name, field in sorted(fields):
        assert schemas[name]["properties"][field]["description"], (name, field)
    assert set(FIELDS_OF) <= fields
    assert set(FIELDS) == {field for name, field in fields if (name, field) not in FIELDS_OF}
    parameters = [each for _, operation in operations(document) for each in operation.get("parameters", ())]
    assert all(each["description"] for each in parameters)
    assert set(PARAMETERS) == {each["name"] for each in parameters if each["in"] != "header"}


def test_every_example_is_as_its_schema_says_and_no_schema_is_without(schemas: dict[str, Any]) -> None:
    assert [problem for name, value in EXAMPLES.items() for problem in wrong(schemas, schemas[name], value, name)] == []
    shown_elsewhere = ("Page", "Answer")
    parts = {"Expected", "ListError", "ManufacturerList", "ManufacturerListUrl", "RenewalWindow", "OpenTokens",
             "FeedStatus", "CrlStatus", "UnknownAuthority"}  # fmt: skip
    without = {name for name, schema in schemas.items() if "properties" in schema and "examples" not in schema}
    assert {name for name in without if not name.endswith(shown_elsewhere)} == parts


def test_a_change_of_a_group_has_no_defaults_which_a_client_would_send(schemas: dict[str, Any]) -> None:
    assert not [name for name, rule in schemas["GroupChange"]["properties"].items() if "default" in rule]
    assert schemas["NewGroup"]["properties"]["same_key_seconds"]["default"] == 3600


class Asker:
    """Sends requests, and holds each answer against what the document says of it, to the last field."""

    def __init__(self, api: httpx.Client, document: dict[str, Any]) -> None:
        self._api = api
        self._document = document
        self.asked: set[str] = set()

    def __call__(
        self, operation: str, names: dict[str, Any] | None = None, *, refused: bool = False, **content: Any
    ) -> Any:
        method, _, path = operation.partition(" ")
        answer = self._api.request(method, path.format(**(names or {})), **content)
        assert answer.is_success is not refused, answer.text
        self.asked.add(operation)
        told = self._document["paths"][path][method.lower()]["responses"]
        key = str(answer.status_code) if answer.is_success else f"{answer.status_code // 100}XX"
        if answer.status_code == 204:
            return None
        media_type = answer.headers["content-type"].partition(";")[0]
        schema = told[key]["content"][media_type]["schema"]
        value = answer.text if media_type.startswith("text/") else answer.json()
        assert wrong(self._document["components"]["schemas"], schema, value, operation) == []
        return value


def test_what_is_answered_is_what_is_told_to_the_last_field(
    own_service: ProvisioningService, document: dict[str, Any], tmp_path: Path
) -> None:
    acme = Manufacturer()
    crl: dict[str, Any] = {
        "content": listed(acme, 7, now=datetime.now(UTC) - timedelta(minutes=1)),
        "headers": {"Content-Type": "application/pkix-crl"},
    }
    enrol(own_service, "meter-1", "meter-2", group="north")
    enrol(own_service, "anna", role="operator")
    with own_service.api() as api:
        ask = Asker(api, document)
        for example, operation in (("NewGroup", "POST /v1/groups"), ("NewClaim", "POST /v1/claims"),
                                   ("TokensRequest", "POST /v1/tokens")):  # fmt: skip
            ask(operation, json=EXAMPLES[example])
        ask("PATCH /v1/groups/{name}", {"name": "north"}, json=EXAMPLES["GroupChange"])
        lab = {"name": "lab", "ways": ["approval"], "lifetime_seconds": 86_400, "maximum_devices": 5}
        ask("POST /v1/groups", json=lab)
        ask("POST /v1/groups/{group}/listed", {"group": "north"}, json=EXAMPLES["Batch"])
        assert ask("POST /v1/groups/{group}/listed", {"group": "north"}, json={"devices": [{"name": "a b"}]})["errors"]
        ask("POST /v1/manufacturers", json={**EXAMPLES["NewManufacturer"], "certificate": acme.pem})
        ask("PATCH /v1/manufacturers/{name}", {"name": "acme"}, json=EXAMPLES["ManufacturerTerms"])
        taken = ask("POST /v1/manufacturers/{name}/lists", {"name": "acme"}, **crl)
        ask("POST /v1/manufacturers/{name}/lists", {"name": "acme"}, **crl)
        device = OpensslDevice(tmp_path, "bench-1")
        pending = Curl(own_service.https, own_service.bundle).est("lab/simpleenroll", device.request())
        assert pending.status == 202, pending.text
        (request,) = ask("GET /v1/approvals", params={"state": "pending"})["items"]
        ask("POST /v1/approvals/{number}/decision", {"number": request["id"]}, json=EXAMPLES["Decision"])
        ask("GET /v1/approvals", params={"state": "approved"})
        ask("PUT /v1/operators/{name}", {"name": "anna"}, json=EXAMPLES["RoleChange"])
        ask("POST /v1/renewals/hasten", json=EXAMPLES["HastenRequest"])
        (certificate,) = ask("GET /v1/certificates", params={"device": "meter-1"})["items"]
        serial = {"serial": certificate["serial"]}
        ask("POST /v1/suspensions", json={"device": "meter-1"})
        ask("GET /v1/devices/{name}", {"name": "meter-1"})
        ask("POST /v1/resumptions", json={"device": "meter-1"})
        ask("POST /v1/resumptions", json={"device": "meter-1"})
        ask("POST /v1/suspensions", json={"devices": ["meter-1", "meter-2"], "serials": [serial["serial"]]})
        ask("POST /v1/resumptions", json={"devices": ["meter-1", "meter-2"]})
        for many in ("suspensions", "resumptions", "decommissions", "revocations"):
            assert ask(f"POST /v1/{many}", json={"devices": ["nobody", "meter-1"]}, refused=True)["items"]
        ask("POST /v1/revocations", json={**serial, "invalidity_date": "2026-01-05T08:00:00Z"})
        ask("POST /v1/decommissions", json={"device": "meter-2"})
        number = int(certificate["serial"], 16)
        parts = bytes.fromhex(certificate["issuer_key_id"]), number.to_bytes(number.bit_length() // 8 + 1)
        identifier = ".".join(urlsafe_b64encode(each).decode().rstrip("=") for each in parts)
        ask("GET /v1/renewal-info/{identifier}", {"identifier": identifier})
        assert ask("GET /v1/devices/{name}", {"name": "nobody"}, refused=True)["code"] == "DEVICE_UNKNOWN"
        for operation in ("GET /v1/tokens", "GET /v1/devices", "GET /v1/certificates", "GET /v1/groups",
                          "GET /v1/claims", "GET /v1/manufacturers"):  # fmt: skip
            assert ask(operation, params={"limit": 1})["items"], operation
            ask(operation)
        for operation in ("GET /v1/operators", "GET /v1/operators/me", "GET /v1/status", "GET /v1/inventory/counts",
                          "GET /v1/inventory/export"):  # fmt: skip
            ask(operation)
        ask("GET /v1/inventory/export", params={"format": "csv"})
        for operation, names in (
            ("GET /v1/devices/{name}", {"name": "meter-2"}),
            ("GET /v1/certificates/{serial}", serial),
            ("GET /v1/tokens/{number}", {"number": 1}),
            ("GET /v1/groups/{name}", {"name": "north"}),
            ("GET /v1/groups/{group}/listed", {"group": "north"}),
            ("GET /v1/operators/{name}/left", {"name": "admin"}),
            ("DELETE /v1/operators/{name}/listed", {"name": "admin"}),
            ("DELETE /v1/groups/{group}/listed/{name}", {"group": "north", "name": "meter-17"}),
            ("GET /v1/claims/{name}", {"name": "batch-7"}),
            ("DELETE /v1/claims/{name}", {"name": "batch-7"}),
            ("GET /v1/manufacturers/{name}", {"name": "acme"}),
            ("GET /v1/manufacturers/{name}/revoked", {"name": "acme"}),
            ("DELETE /v1/manufacturers/{name}/lists/{sha256}", {"name": "acme", "sha256": taken["sha256"]}),
            ("DELETE /v1/manufacturers/{name}", {"name": "acme"}),
        ):
            ask(operation, names)
        (made,) = ask("POST /v1/tokens", json={"device": "meter-9", "group": "north"})["tokens"]
        ask("DELETE /v1/tokens/{number}", {"number": made["id"]})
        several = {"tokens": [made["id"], 1]}
        ask("POST /v1/voidings", json=several)
        ask("PUT /v1/revocations/feed/authorities", json=EXAMPLES["KnownAuthorities"], refused=True)  # For brokers.
        assert ask("POST /v1/voidings", json={"tokens": [1, 999_999]}, refused=True)["items"][0]["token"] == 999_999
    assert set(OPERATIONS) - ask.asked == {"GET /v1/revocations/feed"}
