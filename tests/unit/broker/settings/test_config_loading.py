"""An error is said of the source that it is in, when there are several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from broker.settings.config import FileValues
from broker.settings.config_file import ConfigError, read_texts
from broker.settings.config_loading import load

ENOUGH: dict[str, Any] = {"cafile": Path("ca.pem"), "provisioning": "https://127.0.0.1:8443"}


def refusal(path: Path, flags: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, ENOUGH | flags)
    return str(caught.value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "broker.toml"


def test_a_flag_that_is_not_given_is_not_to_blame(path: Path) -> None:
    path.write_text("port = 'x'")
    assert refusal(path, {"port": None}).startswith(f"{path}: port: give a whole number")


def test_the_file_is_to_blame_for_what_is_in_it_and_not_for_what_else_is_given(path: Path) -> None:
    path.write_text("port = 9443")
    assert refusal(path, {"certfile": "a"}) == "certfile and keyfile: give both or neither"
    path.write_text("keyfile = 'a'")
    assert refusal(path, {}) == f"{path}: certfile and keyfile: give both or neither"


def test_nothing_of_a_file_is_kept(path: Path) -> None:
    """It may hold a token."""
    path.write_text("token = 's3cret'")
    load(path, ENOUGH)
    assert FileValues.values == {}
    refusal(path, {"token_file": "x"})
    assert FileValues.values == {}


def test_a_command_reads_of_the_file_what_it_asks_for(path: Path) -> None:
    path.write_text("state_dir = 'here'\nport = 5\naudit_log = 'there'")
    assert read_texts(path, "state_dir", "audit_keyfile") == {"state_dir": "here"}
