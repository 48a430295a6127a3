"""The recipe of the image, the Compose file and docs/container.md agree with each other, and with the programs."""

from __future__ import annotations

import fnmatch
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from broker.settings.config import BrokerConfig
from provisioning.config import Settings
from tests.support.provisioning import REPOSITORY

FOLDER = REPOSITORY / "deploy" / "container"
RECIPE = (FOLDER / "Containerfile").read_text(encoding="utf-8")
COMPOSE = (FOLDER / "compose.yaml").read_text(encoding="utf-8")
PAGE = (REPOSITORY / "docs" / "container.md").read_text(encoding="utf-8")
SETTINGS = {"FLEET_BROKER_": set(BrokerConfig.model_fields), "FLEET_PROVISIONING_": set(Settings.model_fields)}


@pytest.mark.parametrize("text", [RECIPE, COMPOSE, PAGE], ids=["Containerfile", "compose.yaml", "container.md"])
def test_each_variable_is_a_setting(text: str) -> None:
    named = re.findall(r"\b(FLEET_(?:BROKER|PROVISIONING)_)([A-Z0-9_]+)\b(?!=tcp)", text)
    assert named
    assert [prefix + name for prefix, name in named if name.lower() not in SETTINGS[prefix]] == []


def test_what_is_copied_is_there_and_not_ignored() -> None:
    copied = [name for line in re.findall(r"^COPY (?!--from)(.*) \S+$", RECIPE, re.MULTILINE) for name in line.split()]
    assert {"provisioning", "broker", "device_sim", "pyproject.toml"} <= set(copied)
    ignored, *kept = [
        line for line in (FOLDER / "Containerfile.dockerignore").read_text().split("\n") if not line.startswith("#")
    ]
    assert ignored == "*"
    let_in = [line[1:] for line in kept if line.startswith("!")]
    for name in copied:
        assert (REPOSITORY / name).exists(), name
        assert any(fnmatch.fnmatch(name.split("/")[0], pattern) for pattern in let_in), name


def test_the_requirements_are_those_of_the_distribution() -> None:
    printed = subprocess.run(
        [sys.executable, FOLDER / "requirements"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(project["dependencies"]) <= set(printed)
    assert any(line.startswith("psycopg[binary]") for line in printed)


def test_it_runs_as_a_user_who_owns_its_directory_and_nothing_else() -> None:
    last = RECIPE[RECIPE.rindex("\nFROM ") :]
    user = re.findall(r"^USER (\d+):(\d+)$", last, re.MULTILINE)
    assert user == [("10001", "10001")]
    assert "--uid 10001" in last
    assert "install -d -o fleet -g fleet -m 0700 /data" in last
    assert set(re.findall(r"=(/data)/", last)) == {"/data"}
    assert not re.search(r"\b(gcc|python3-venv|pip)\b", last)


def test_both_services_are_confined() -> None:
    assert COMPOSE.count("<<: *program") == len(re.findall(r"^    command:", COMPOSE, re.MULTILINE)) == 2
    shared = COMPOSE[COMPOSE.index("x-program") : COMPOSE.index("\nservices:")]
    for line in ("read_only: true", "cap_drop: [ALL]", 'security_opt: ["no-new-privileges:true"]'):
        assert line in shared


def test_the_page_uses_the_files_and_variables_that_the_compose_file_names() -> None:
    assert set(re.findall(r"\$\{(FLEETGATE_[A-Z]+)", COMPOSE)) == set(re.findall(r"\b(FLEETGATE_[A-Z]+)=", PAGE))
    for name in ("passphrase", "ca-bundle.crt", "broker.token"):
        assert f"/etc/fleetgate/{name}" in COMPOSE
        assert re.search(rf"\$FLEETGATE_ETC/(provisioning|broker)/{re.escape(name)}\b", PAGE), name
    for path in re.findall(r"deploy/container/\w+(?:\.\w+)?", PAGE):
        assert Path(REPOSITORY, path).exists(), path
