"""What the doctor says of a service."""

from __future__ import annotations

import json
from typing import Any

from tests.support.provisioning import ProvisioningService


def findings(service: ProvisioningService, *arguments: str) -> tuple[int, dict[str, list[dict[str, Any]]]]:
    """Return the exit code, and what is not well, by check."""
    done = service.command("doctor", "--json", "--dir", str(service.dir), *arguments)
    found: dict[str, list[dict[str, Any]]] = {}
    for each in json.loads(done.stdout):
        found.setdefault(each["check"], [])
        if each["verdict"] != "ok":
            assert each["remedy"], "a finding without a remedy"
            found[each["check"]].append(each)
    return done.returncode, found
