"""schemathesis, a stranger to our code, makes up requests from the OpenAPI document: none may break the service.

It holds the first operator's certificate, so it may do everything, and does: what it cannot do is shut everybody out.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.provisioning import ProvisioningService

SETTINGS = {"requests_per_second": 0, "crl_debounce_seconds": 0.05}
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def test_no_request_of_an_operator_breaks_the_service(tmp_path: Path) -> None:
    with ProvisioningService.copied(tmp_path / "fleet", SETTINGS) as service:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "run", f"{service.https}/v1/openapi.json"),
                *("--tls-verify", service.bundle, "--request-cert", service.operator.certificate),
                *("--request-cert-key", service.operator.key, "--exclude-path", "/v1/revocations/feed"),
                *("--phases", "coverage,fuzzing,stateful", "--max-examples", "6", "--checks", CHECKS),
                *("--seed", "1", "--request-timeout", "30", "--no-color"),
            ],
            capture_output=True, text=True, check=False, timeout=240, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-4000:]
        assert " passed" in done.stdout
        with service.api() as api:
            me = api.get("/v1/operators/me")
            assert (me.status_code, me.json()["role"]) == (200, "admin"), "still let in, still admin"
        assert "request failed" not in service.log
