"""The operators' framework stands behind the application: what happens in it is answered, counted and logged once."""

from __future__ import annotations

import httpx
import pytest
from structlog.testing import capture_logs

from provisioning.api.application import answering, new_application
from provisioning.api.operator_application import new_framework
from provisioning.config import Settings
from provisioning.errors import Code, Refused
from provisioning.metrics import Metrics


@pytest.mark.parametrize(
    ("failure", "code", "status", "lines"),
    [
        (ZeroDivisionError("a detail"), "INTERNAL", 500, ["request failed"]),
        (Refused(Code.UNAVAILABLE, "later"), "UNAVAILABLE", 503, []),
    ],
)
async def test_what_is_raised_by_a_route_is_told_once(
    failure: Exception, code: str, status: int, lines: list[str]
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
