"""Which role each route needs: what nobody has opened is closed."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

from fastapi import APIRouter
from fastapi.routing import APIRoute

from provisioning import api
from provisioning.api.operators import authorise_operator
from provisioning.api.route_roles import asked_of, for_role, needed_role
from provisioning.api.tokens import TokensRequest
from provisioning.operator_role import OperatorRole

OPEN_TO_ENROLLERS = {
    ("POST", "/v1/tokens"),
    ("DELETE", "/v1/tokens/{number}"),
    ("POST", "/v1/voidings"),
    ("POST", "/v1/approvals/{number}/decision"),
    ("POST", "/v1/groups/{group}/listed"),
    ("DELETE", "/v1/groups/{group}/listed/{name}"),
}
"""Everything else that changes something is an admin's, everything that reads an auditor's too."""


def operator_routes() -> list[APIRoute]:
    routes = []
    for module in pkgutil.iter_modules(api.__path__):
        router = getattr(importlib.import_module(f"provisioning.api.{module.name}"), "router", None)
        if isinstance(router, APIRouter):
            assert authorise_operator in [each.dependency for each in router.dependencies], module.name
            routes += [each for each in router.routes if isinstance(each, APIRoute)]
    return routes


def test_only_what_is_marked_is_open_to_enrollers() -> None:
    found = {
        (method, route.path): needed_role(method, route.endpoint)
        for route in operator_routes()
        for method in route.methods or ()
    }
    assert {each for each, role in found.items() if role is OperatorRole.ENROLLER} == OPEN_TO_ENROLLERS
    for (method, path), role in found.items():
        assert (role is OperatorRole.AUDITOR) is (method == "GET"), path
    assert found["PUT", "/v1/operators/{name}"] is OperatorRole.ADMIN


def test_what_depends_on_a_body_is_said_by_the_body_so_that_an_answer_is_not_given_again_without_it() -> None:
    sources = {
        route.path: (inspect.getsource(route.endpoint), asked_of(route.endpoint))
        for route in operator_routes()
        if "POST" in (route.methods or ())
    }
    assert [path for path, (source, _) in sources.items() if "operator.check(" in source] == []
    asking = {path: asked for path, (source, asked) in sources.items() if ".check(operator)" in source}
    assert asking == {"/v1/tokens": TokensRequest}


def test_each_role_may_do_what_those_before_it_may() -> None:
    order = [OperatorRole.AUDITOR, OperatorRole.ENROLLER, OperatorRole.ADMIN]
    assert [[role.permits(needed) for needed in order] for role in order] == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]


def test_a_mark_is_read_from_the_route() -> None:
    @for_role(OperatorRole.AUDITOR)
    def search() -> None: ...

    assert needed_role("POST", search) is OperatorRole.AUDITOR
    assert needed_role("HEAD", test_a_mark_is_read_from_the_route) is OperatorRole.AUDITOR
    assert asked_of(for_role(OperatorRole.ENROLLER, TokensRequest)(search)) is TokensRequest
    assert asked_of(test_a_mark_is_read_from_the_route) is None
    assert needed_role("POST", test_a_mark_is_read_from_the_route) is OperatorRole.ADMIN
