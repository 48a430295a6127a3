"""Cisco's libest, as Debian has it: the library that many EST clients are built on enrols and renews here."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support.provisioning import REPOSITORY, ProvisioningService

SOURCE = REPOSITORY / "tests" / "support" / "clients" / "libest_client.c"


def compiled(directory: Path) -> Path:
    """Compile the client; fails where its library is missing."""
    program = directory / "libest_client"
    done = subprocess.run(
        ["gcc", "-Wall", "-Wextra", "-Werror", "-o", program, SOURCE, "-lest", "-lssl", "-lcrypto"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stderr}\nRemedy: apt-get install libest-dev"
    return program


def test_libest_enrols_by_token_and_renews_with_what_it_got(service: ProvisioningService, tmp_path: Path) -> None:
    token = service.token(device="libest-1", group="meters")
    command = [str(compiled(tmp_path)), str(service.bundle), "localhost", str(service.port), "libest-1", token]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    asked = [f"{each}: EST_ERR_NONE, HTTP 200" for each in ("cacerts", "csrattrs")]
    assert done.stdout.splitlines() == [
        *asked, "enrol: EST_ERR_NONE, HTTP 200", "CN = libest-1", *asked, "renew: EST_ERR_NONE, HTTP 200",
    ], done.stderr  # fmt: skip
    assert done.returncode == 0
    with service.api() as api:
        issued = api.get("/v1/certificates", params={"device": "libest-1"}).json()["items"]
    assert len(issued) == 2
    # The token is spent, and libest hears it.
    again = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (again.returncode, again.stdout.splitlines()) == (1, [*asked, "enrol: EST_ERR_AUTH_FAIL, HTTP 401"])
