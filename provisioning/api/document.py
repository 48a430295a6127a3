"""The OpenAPI document of the operators' API, for people, and for client generators.

Theory
------
The framework knows paths, parameters and bodies. Answers are described by the models of our own client
(`provisioning.client`), so both agree; names, tags and summaries by `document_operations`, fields and parameters
by `document_words`, examples by `document_examples`::

    framework's document ─► operations named, answers described ─► fields described ─► examples

It is made on the first request for it, in a thread, and kept: nothing of it is imported when a service starts.

Rules
-----
1. Every operation is described: a route missing from `OPERATIONS` is a KeyError, which a test finds.
2. Descriptions here never change an answer: a field added to an answer must be added to the client's model too; a test
   compares the two.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic.json_schema import models_json_schema

from provisioning.api.document_examples import EXAMPLES
from provisioning.api.document_operations import OPERATIONS, PAGE, TAGS, Operation
from provisioning.api.document_words import FIELDS, FIELDS_OF, PARAMETERS
from provisioning.api.route_roles import needed_role
from provisioning.client.operator_answers import Answer
from provisioning.errors import Code

_REF: Final = "#/components/schemas/"
_SCHEME: Final = "certificate"
_OPEN: Final = frozenset({"show_renewal_info"})
"""Operations that need no certificate."""
_FOLLOWS: Final = "follow_revocations"
_NEEDS: Final = {
    "show_renewal_info": "Needs no certificate.",
    _FOLLOWS: "Needs the certificate of a broker, a service or an operator.",
    "tell_known_authorities": "Needs the certificate of a broker.",
}
"""Where it is no operator's role."""

_DESCRIPTION: Final = """\
The REST API of fleet-provisioning for operators and their programs.

**The caller** is identified by the client certificate of the TLS connection: an operator, whose role is in the store.
Auditors may read everything, enrollers may admit devices, admins may do everything; each operation says which role it
needs. Verify the server with `ca-bundle.crt` of the service's directory, not with the system's trust store.

**A refusal** is a problem document (RFC 9457). Its `code` is stable, and its `detail` names the field and the
remedy. Answers with 429 and 503 have `Retry-After`.

**Lists** come in pages: send `next` of one page as `after` to get the following one, until it is null.

**Many items in one request** are processed together or not at all: `items` of the problem document lists each one that
cannot be.

**A POST that got no answer** can be repeated with the same `Idempotency-Key`; it is not executed twice. 409
`IDEMPOTENCY_UNKNOWN`: it has changed something, and its answer is lost; look what is there.

Times are in UTC, in RFC 3339. Later versions may add fields to answers: ignore those that you do not know.
"""

_CHOICES: Final = {
    ("KnownToken", "state"): "TokenState",
    ("EnrolledDevice", "state"): "DeviceState",
    ("EnrolledDevice", "certificate"): "Standing",
    ("IssuedCertificate", "state"): "CertificateState",
    ("CertificateDetails", "state"): "CertificateState",
    ("Approval", "state"): "ApprovalState",
    ("RecalledDevice", "state"): "DeviceState",
    ("RecalledDevice", "reason"): "RevocationReason",
    ("GrantedRole", "role"): "OperatorRole",
    ("ListedOperator", "role"): "OperatorRole",
    ("ListedOperator", "state"): "DeviceState",
    ("Myself", "role"): "OperatorRole",
    ("EnrolmentGroup", "new_key"): "NewKey",
    ("Manufacturer", "lapsed_lists"): "LapsedLists",
    ("Manufacturer", "revoked_devices"): "RevokedDevices",
}
"""Fields that our client takes as they come, since a newer service may know more: here they are what there is."""

_MAY_BE_NULL: Final = frozenset({("ListedOperator", "state")})

_PROBLEM: Final[dict[str, Any]] = {
    "title": "Problem",
    "description": "A refusal (RFC 9457).",
    "type": "object",
    "required": ["type", "title", "status", "code", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "code": {"type": "string", "enum": [code.value for code in Code]},
        "detail": {"type": "string"},
        "items": {"type": "array", "items": {"$ref": f"{_REF}RefusedItem"}},
    },
}
_REFUSED_ITEM: Final[dict[str, Any]] = {
    "title": "RefusedItem",
    "description": "One of many items of a request, named by device, serial or token, and why it cannot be processed.",
    "type": "object",
    "required": ["code", "detail"],
    "properties": {
        "device": {"type": "string"},
        "serial": {"type": "string"},
        "token": {"type": "integer"},
        "code": {"type": "string", "enum": [code.value for code in Code]},
        "detail": {"type": "string"},
    },
}
_REFUSED: Final = {
    "4XX": "Refused: `code` and `detail` say why.",
    "5XX": "Not possible now, or failed: repeat the request after `UNAVAILABLE`.",
}
_RETRY_AFTER: Final = {
    "Retry-After": {
        "description": "With 429 and 503: seconds to wait before the next attempt.",
        "schema": {"type": "integer"},
    }
}
_KEY: Final = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": (
        "A UUID that you choose for this request. Repeated within a day with the same body, it is not executed again: "
        "the first answer is sent again, with `Idempotency-Replayed: true`."
    ),
    "schema": {"type": "string", "maxLength": 130},
}
_LAST_EVENT: Final = {
    "name": "Last-Event-ID",
    "in": "header",
    "required": False,
    "description": "Same as `after`, which takes precedence. Clients of server-sent events send it by themselves.",
    "schema": {"type": "string", "maxLength": 18},
}
_EVENTS: Final = {
    "description": "Server-sent events, without end; comments at intervals keep the connection alive.",
    "content": {
        "text/event-stream": {
            "schema": {"type": "string"},
            "example": 'id: 1042\nevent: revoked\ndata: {"sequence": 1042, "serial": "5a1d…", …}\n\n',
        }
    },
}


def document_of(framework: FastAPI, routers: Sequence[APIRouter]) -> dict[str, Any]:
    """Return the document of *framework*, which has the routes of *routers*."""
    described = APIRouter(responses=framework.router.responses)
    for router in routers:
        described.include_router(router)
    document = get_openapi(
        title="Fleetgate provisioning",
        version=framework.version,
        summary="Enrol devices, issue, renew and revoke their certificates.",
        description=_DESCRIPTION,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        servers=[{"url": "/", "description": "The service that sends this document."}],
        tags=[{"name": name, "description": words} for name, words in TAGS.items()],
        routes=described.routes,
    )
    document["security"] = [{_SCHEME: []}]
    parts = document["components"]
    parts["securitySchemes"] = {
        _SCHEME: {
            "type": "mutualTLS",
            "description": "The certificate of an operator; for the feed, also of a broker or a service.",
        }
    }
    schemas = parts["schemas"]
    schemas.update(_answers())
    schemas["Problem"] = _PROBLEM
    schemas["RefusedItem"] = _REFUSED_ITEM
    for rule in schemas["GroupChange"]["properties"].values():
        rule.pop("default", None)  # What is left out stays as it is: a client that fills it in would change it.
    for (schema, field), choice in _CHOICES.items():
        named: dict[str, Any] = {"$ref": f"{_REF}{choice}"}
        nothing = (schema, field) in _MAY_BE_NULL
        schemas[schema]["properties"][field] = {"anyOf": [named, {"type": "null"}]} if nothing else named
    endpoints = {
        (route.path, method): route.endpoint
        for router in routers
        for route in router.routes
        if isinstance(route, APIRoute)
        for method in route.methods or ()
    }
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            told = OPERATIONS[f"{method.upper()} {path}"]
            _tell(operation, told, schemas, method.upper(), endpoints[path, method.upper()])
    _word(schemas)
    return document


def _answers() -> dict[str, dict[str, Any]]:
    """Return the schemas of the client's models, with all that is in them."""
    models = {each.answer for each in OPERATIONS.values() if each.answer is not None}
    models |= {each.beside[1] for each in OPERATIONS.values() if each.beside is not None}
    ordered: list[tuple[type[Answer], Any]] = [
        (each, "serialization") for each in sorted(models, key=lambda each: each.__name__)
    ]
    _, made = models_json_schema(ordered, ref_template=f"{_REF}{{model}}")
    schemas: dict[str, dict[str, Any]] = made["$defs"]
    for schema in schemas.values():
        if "properties" in schema:
            schema["required"] = list(schema["properties"])  # All are answered, null where there is nothing.
            for field in schema["properties"].values():
                field.pop("default", None)
    return schemas


def _tell(operation: dict[str, Any], told: Operation, schemas: dict[str, Any], method: str, endpoint: object) -> None:
    operation |= {"operationId": told.name, "tags": [told.tag], "summary": told.summary}
    if told.name in _OPEN:
        operation["security"] = []
    if told.name in _NEEDS:
        needs = _NEEDS[told.name]
    else:
        role = needed_role(method, endpoint)
        operation["x-operator-role"] = role.value
        needs = f"Needs an operator with role {role.value}."
    operation["description"] = f"{_plain(inspect.getdoc(endpoint) or told.summary)}\n\n{needs}"
    for parameter in operation.get("parameters", ()):
        parameter["description"] = PARAMETERS[parameter["name"]]
        parameter["schema"].pop("title", None)
        if method == "GET" and not parameter["required"]:
            _leave_out(parameter)
    if method == "POST":
        operation.setdefault("parameters", []).append(_KEY)
    if told.name == _FOLLOWS:
        operation["parameters"].append(_LAST_EVENT)
    for status, response in operation["responses"].items():
        if status.endswith("XX"):
            content = {"application/problem+json": {"schema": {"$ref": f"{_REF}Problem"}}}
            response |= {"description": _REFUSED[status], "content": content, "headers": _RETRY_AFTER}
        elif status != str(HTTPStatus.NO_CONTENT.value):
            _answer(response, told, schemas)


def _leave_out(parameter: dict[str, Any]) -> None:
    """Say of a filter what it takes: there is no null in a query, it is left out."""
    schema = parameter["schema"]
    kinds = [each for each in schema.pop("anyOf", ()) if each != {"type": "null"}]
    for kind in kinds:
        schema.update(kind)


def _answer(response: dict[str, Any], told: Operation, schemas: dict[str, Any]) -> None:
    if response.get("description") == "Successful Response":
        response["description"] = "Done."
    if told.name == _FOLLOWS:
        response |= _EVENTS
        return
    if told.name == "export_certificates":
        every = {"type": "array", "items": {"$ref": f"{_REF}IssuedCertificate"}}
        response["content"] = {"application/json": {"schema": every}, "text/csv": {"schema": {"type": "string"}}}
        return
    if told.answer is None:
        counts = {"type": "object", "additionalProperties": {"type": "integer"}}
        response["content"] = {"application/json": {"schema": counts, "example": {"active": 1193, "revoked": 5}}}
        return
    name = told.answer.__name__
    if told.within:
        name = _list_of(told, schemas)
    response["content"] = {"application/json": {"schema": {"$ref": f"{_REF}{name}"}}}


def _list_of(told: Operation, schemas: dict[str, Any]) -> str:
    """Return the schema of an answer that holds several, after it is among *schemas*."""
    if told.answer is None:
        raise AssertionError("a list of something")
    one = told.answer.__name__
    field = "items" if told.within in {PAGE, "items"} else told.within
    name = f"{one}Page" if told.within == PAGE else f"{told.name.title().replace('_', '')}Answer"
    properties: dict[str, Any] = {field: {"type": "array", "items": {"$ref": f"{_REF}{one}"}}}
    if told.beside is not None:
        beside, other = told.beside
        properties[beside] = {"type": "array", "items": {"$ref": f"{_REF}{other.__name__}"}}
    if told.names:
        properties[told.names] = {"type": "array", "items": {"type": "string"}}
    if told.within == PAGE:
        properties["next"] = {"anyOf": [{"type": "string"}, {"type": "null"}]}
    schemas[name] = {"title": name, "type": "object", "required": [*properties], "properties": properties}
    return name


def _word(schemas: dict[str, Any]) -> None:
    """Say what each field means, and give an example of each schema."""
    for name, schema in schemas.items():
        if "description" in schema:
            schema["description"] = _plain(schema["description"])
        for field, content in schema.get("properties", {}).items():
            content.pop("title", None)
            content["description"] = FIELDS_OF.get((name, field)) or FIELDS[field]
        if name in EXAMPLES:
            schema["examples"] = [EXAMPLES[name]]


def _plain(text: str) -> str:
    """Return a docstring as Markdown: literals as it writes them."""
    return re.sub(r"``([^`]+)``", r"`\1`", text)
