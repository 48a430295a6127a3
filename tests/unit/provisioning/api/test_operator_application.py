"""The operators' framework stands behind the application: what happens in it is answered, counted and logged once."""

from __future__ import annotations

import httpx
import pytest
from fastapi import APIRouter
from structlog.testing import capture_logs

from provisioning.api.application import answering, new_application
from provisioning.api.metrics import Metrics
from provisioning.api.operator_application import new_framework
from provisioning.config import Settings
from provisioning.errors import Code, Refused
from tests.support.panic import a_panic


@pytest.mark.parametrize(
    ("failure", "code", "status", "lines"),
    [
        (ZeroDivisionError("a detail"), "INTERNAL", 500, ["request failed"]),
        (a_panic(), "INTERNAL", 500, ["request failed"]),
        (Refused(Code.UNAVAILABLE, "later"), "UNAVAILABLE", 503, []),
    ],
)
async def test_what_is_raised_by_a_route_is_told_once(
    failure: BaseException, code: str, status: int, lines: list[str]
) -> None:
    metrics = Metrics()
    framework = new_framework("1", answering(metrics))

    @framework.get("/v1/broken")
    async def broken() -> None:
        raise failure

    app = new_application(Settings(), metrics, port="https", behind=framework)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="https://localhost") as client:
        with capture_logs() as logs:
            answer = await client.get("/v1/broken")
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert "a detail" not in answer.text
    assert [line["event"] for line in logs] == lines
    assert metrics.registry.get_sample_value("fleet_provisioning_refusals_total", {"code": code}) == 1


async def test_head_is_answered_as_get_is_and_counted_as_what_it_is() -> None:
    metrics = Metrics()
    framework = new_framework("1", answering(metrics))

    @framework.get("/v1/things/{name}")
    async def thing(name: str) -> dict[str, str]:
        return {"name": name}

    app = new_application(Settings(), metrics, port="https", behind=framework)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://localhost") as client:
        got, head = await client.get("/v1/things/a"), await client.head("/v1/things/a")
        assert (head.status_code, head.headers, head.content) == (200, got.headers, b"")
        assert (await client.head("/v1/none")).status_code == 404
    labels = {"port": "https", "method": "HEAD", "route": "/v1/things/{name}", "status": "200"}
    assert metrics.registry.get_sample_value("fleet_provisioning_requests_total", labels) == 1


async def test_who_uses_a_method_that_a_path_does_not_take_is_told_all_that_it_takes() -> None:
    metrics = Metrics()
    framework = new_framework("1", answering(metrics))

    async def nothing() -> None:
        """Do nothing."""

    for method in ("POST", "GET"):  # Each of a router of its own, as the operators' API has them.
        router = APIRouter(prefix="/v1")
        router.add_api_route("/things", nothing, methods=[method])
        framework.routes.extend(router.routes)
    framework.add_api_route("/v1/things/{name}", nothing, methods=["DELETE"])
    app = new_application(Settings(), metrics, port="https", behind=framework)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://localhost") as client:
        for method, path, allowed in (
            ("PATCH", "/v1/things", "GET, HEAD, POST"),
            ("OPTIONS", "/v1/things", "GET, HEAD, POST"),
            ("GET", "/v1/things/a", "DELETE"),
            ("HEAD", "/v1/things/a", "DELETE"),
        ):
            answer = await client.request(method, path)
            assert (answer.status_code, answer.headers["Allow"]) == (405, allowed), (method, path)
            if method != "HEAD":
                assert answer.json()["detail"] == f"{method} {path}: send {allowed}"
