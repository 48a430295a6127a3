"""An error is said of the source that it is in, when there are several."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from broker.settings import config_loading
from broker.settings.config import FILE_VALUES
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


@pytest.mark.parametrize(
    ("flags", "variable", "said"),
    [
        ({"host": "0.0.0.0"}, None, "host: 0.0.0.0 is not a loopback address; "),
        ({}, "0.0.0.0", "FLEET_BROKER_HOST: host: 0.0.0.0 is not a loopback address; "),
        ({"host": "0.0.0.0"}, "::", "host: 0.0.0.0 is not a loopback address; "),
    ],
)
def test_a_file_is_not_to_blame_for_what_overrides_it(
    path: Path, monkeypatch: pytest.MonkeyPatch, flags: dict[str, Any], variable: str | None, said: str
) -> None:
    path.write_text("host = '127.0.0.1'")
    if variable is not None:
        monkeypatch.setenv("FLEET_BROKER_HOST", variable)
    assert refusal(path, flags).startswith(said)


def test_nothing_of_a_file_is_kept(path: Path) -> None:
    """It may hold a token."""
    path.write_text("token = 's3cret'")
    load(path, ENOUGH)
    assert not FILE_VALUES.get()
    refusal(path, {"token_file": "x"})
    assert not FILE_VALUES.get()


def test_two_files_are_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reload and a dry run each read settings in a thread."""
    both, then = threading.Barrier(2), config_loading._refuse_unknown_variables

    def together() -> None:
        both.wait(10)
        then()

    monkeypatch.setattr(config_loading, "_refuse_unknown_variables", together)
    paths = [tmp_path / "first.toml", tmp_path / "second.toml"]
    for path in paths:
        path.write_text(f"name = '{path.stem}'")
    with ThreadPoolExecutor(2) as threads:
        assert [found.name for found in threads.map(lambda path: load(path, ENOUGH), paths)] == ["first", "second"]


def test_a_command_reads_of_the_file_what_it_asks_for(path: Path) -> None:
    path.write_text("state_dir = 'here'\nport = 5\naudit_log = 'there'")
    assert read_texts(path, "state_dir", "audit_keyfile") == {"state_dir": "here"}


@pytest.mark.parametrize("entry", ["LIMITS__MAX_INFLIGHT=7", 'PLUGINS={"a.b": {}}'])
def test_what_should_be_a_table_is_refused_whatever_the_environment_has_of_it(
    path: Path, monkeypatch: pytest.MonkeyPatch, entry: str
) -> None:
    """Else the environment's entry would take its place: a plugin that keeps devices out would not run."""
    variable, _, value = entry.partition("=")
    monkeypatch.setenv(f"FLEET_BROKER_{variable}", value)
    table = variable.partition("_")[0].lower()
    path.write_text(f"{table} = ['c.d']")
    assert refusal(path, {}) == f"{path}: {table}: write a table, [{table}]"


@pytest.mark.parametrize(
    ("variable", "named"),
    [
        ("LIMITS__MAX_INFLIGT", "no such setting; is max_inflight meant?"),
        ("LIMITS__PORT", "no such setting; see docs/reference/settings-of-the-broker.md"),
        ("MAX_INFLIGHT", "no such setting; it is a limit; write it below [limits]"),
    ],
)
def test_a_variable_that_is_no_setting_is_told_the_nearest_at_its_place(
    path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, named: str
) -> None:
    monkeypatch.setenv(f"FLEET_BROKER_{variable}", "7")
    path.write_text("")
    assert refusal(path, {}) == f"FLEET_BROKER_{variable}: {named}"


@pytest.mark.parametrize("variable", ["fleet_broker_prot", "fleet_broker_port", "Fleet_Broker_PORT"])
def test_a_variable_that_is_not_in_capitals_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """The library took it, though no error names it so, and said nothing of one that is no setting."""
    monkeypatch.setenv(variable, "8884")
    path.write_text("")
    assert refusal(path, {}) == f"{variable}: write it in capitals, {variable.upper()}"


def test_an_entry_of_plugins_is_of_the_file_unless_the_environment_names_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_text('[plugins]\n"c.d" = 7')
    monkeypatch.setenv("FLEET_BROKER_PLUGINS", '{"a.b": {}}')
    assert refusal(path, {}).startswith(f"{path}: plugins.c.d: write a table")
    monkeypatch.setenv("FLEET_BROKER_PLUGINS", '{"a.b": 7}')
    path.write_text("")
    assert refusal(path, {}).startswith("FLEET_BROKER_PLUGINS: plugins.a.b: write a table")


def test_one_file_is_a_list_of_one() -> None:
    assert load(None, ENOUGH | {"crlfile": Path("a.crl")}).crlfile == (Path("a.crl"),)
