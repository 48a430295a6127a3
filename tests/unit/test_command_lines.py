"""What the three command lines have alike: their version, and a start that waits for nothing that it does not need."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

import broker.cli
import device_sim.cli
import provisioning.cli
from provisioning.version import product_version
from tests.support.provisioning import REPOSITORY

PROGRAMS = {"fleet-provisioning": provisioning.cli.app, "fleet-broker": broker.cli.app, "fleet-sim": device_sim.cli.app}
HEAVY = {
    "provisioning": {"sqlalchemy", "alembic", "fastapi", "uvicorn", "httpx", "pydantic", "rich"},
    "broker": {"broker.connection", "broker.server", "structlog", "cryptography", "httpx", "pydantic"},
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_each_program_says_its_version(program: str) -> None:
    done = CliRunner().invoke(PROGRAMS[program], ["--version"])
    assert (done.exit_code, done.output) == (0, f"{program} {product_version()}\n")


@pytest.mark.parametrize("package", HEAVY)
def test_help_version_and_the_shell_s_completion_wait_for_no_heavy_library(package: str) -> None:
    program = f"import sys, {package}.cli; print({HEAVY[package]!r} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "set()\n"
