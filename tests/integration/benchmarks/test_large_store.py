"""The store that `benchmarks/large_store.py` fills is one that the service takes for its own, on both databases."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.postgresql import PostgresqlServer
from tests.support.provisioning import ProvisioningService

SOURCE = Path(__file__).parents[3]


@pytest.mark.parametrize("store", ["sqlite", "postgresql"])
def test_a_filled_store_is_used_like_any_other(tmp_path: Path, store: str, request: pytest.FixtureRequest) -> None:
    environment = dict(os.environ)
    settings: dict[str, object] = {"crl_debounce_seconds": 0.05}
    if store == "postgresql":
        server: PostgresqlServer = request.getfixturevalue("postgresql")
        settings["database_url"] = server.new_database(template="template0")
        environment["FLEET_PROVISIONING_DATABASE_URL"] = str(settings["database_url"])
    with ProvisioningService.founded(tmp_path / "fleet", settings) as service:
        assert service.stop() == 0
        done = subprocess.run(
            [sys.executable, "benchmarks/large_store.py", "--dir", str(service.dir), "--devices", "600"],
            cwd=SOURCE, env=environment, capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        service.start()
        verified = service.command("audit", "verify", "--dir", str(service.dir))
        assert verified.returncode == 0, verified.stdout + verified.stderr
        listed = service.command("device", "list", "--dir", str(service.dir), "--group", "group-07")
        assert len(listed.stdout.splitlines()) == 1 + 30, listed.stderr
        done_before = service.post("/v1/revocations", device="meter-0000591", reason="keyCompromise")
        assert done_before.status_code == 201, done_before.text
