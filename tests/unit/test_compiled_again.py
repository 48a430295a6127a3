"""What `make test-compiled` runs again: what reaches the hot path, and processes but those that are named."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from tests.support import compiled_again
from tests.support.compiled_again import NOT_AGAIN, PROCESSES, REPOSITORY, TESTS, files, left_out, reached

UNIT = TESTS / "unit" / "broker"
HOT = {
    REPOSITORY / name
    for name in re.findall(r'"(.+\.py)"', (REPOSITORY / "deploy" / "compiled" / "setup.py").read_text(encoding="utf-8"))
}


@pytest.mark.parametrize(
    ("tests", "hot"),
    [
        pytest.param("routing/test_tree.py", "broker/routing/tree.py", id="by itself"),
        pytest.param("test_wall_clock.py", "broker/connection/connection.py", id="by what it uses of tests"),
    ],
)
def test_a_file_reaches_what_is_imported(tests: str, hot: str) -> None:
    assert REPOSITORY / hot in reached(UNIT / tests) & HOT


def test_who_has_certificates_made_has_not_tried_what_is_in_them() -> None:
    assert TESTS / "support" / "pki.py" in compiled_again._imported(UNIT / "sources" / "test_trust_files.py")
    assert not reached(UNIT / "sources" / "test_trust_files.py") & HOT
    assert reached(UNIT / "test_trust_domains.py") & HOT


@pytest.mark.parametrize("asked", [True, False])
def test_a_fixture_is_reached_by_who_asks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: bool) -> None:
    monkeypatch.setattr(compiled_again, "REPOSITORY", tmp_path)
    monkeypatch.setattr(compiled_again, "TESTS", tmp_path / "tests")
    hot, shared, tests = (
        tmp_path / name for name in ("broker/sockets/turn.py", "tests/conftest.py", "tests/unit/test_it.py")
    )
    for file, text in (
        (hot, ""),
        (shared, "from broker.sockets.turn import Turn\n\ndef turn() -> Turn: ...\n"),
        (tests, f"def test_it({'turn' if asked else 'other'}) -> None: ...\n"),
    ):
        file.parent.mkdir(exist_ok=True, parents=True)
        file.write_text(text)
    assert reached(tests) == ({tests, shared, hot} if asked else {tests})


def test_a_file_that_reaches_nothing_compiled_is_left_out_and_so_are_the_processes_that_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compiled_again, "is_compiled", HOT.__contains__)
    monkeypatch.setattr(compiled_again, "WITHIN", (UNIT / "audit",))
    again = files()
    assert {each for each in again if each.parent == UNIT / "audit"} == {UNIT / "audit" / "test_log.py"}
    processes = {each.name for each in again if each.parent == PROCESSES}
    assert {"test_durability.py", "test_storms.py", "test_tls_session.py"} <= processes
    assert processes | set(NOT_AGAIN) == {each.name for each in PROCESSES.glob("test_*.py")}
    assert not processes & set(NOT_AGAIN)


def test_files_that_reach_something_and_try_something_else_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in compiled_again.ASIDE:
        assert reached(UNIT / name) & HOT, f"{name} is left out anyhow"
    monkeypatch.setattr(compiled_again, "is_compiled", HOT.__contains__)
    monkeypatch.setattr(compiled_again, "WITHIN", (UNIT / "plugins",))
    again = {each.name for each in files() if each.parent == UNIT / "plugins"}
    assert "test_watch.py" in again
    assert not {"test_plugin_set.py", "test_questions.py"} & again


def test_the_single_tests_that_are_left_out_are_there_and_in_files_that_run_again() -> None:
    assert left_out()
    for each in left_out():
        parts = re.fullmatch(r"--deselect=(tests/integration/broker/(.+))\.py::(test_\w+)\[(.+)\]", each)
        assert parts is not None
        place, name, test, values = parts.groups()
        assert f"{name}.py" not in NOT_AGAIN
        (cases,) = getattr(importlib.import_module(place.replace("/", ".")), test).pytestmark
        ids = {"-".join(map(str, case)) for case in cases.args[1]}
        assert values in ids
        assert len(ids) > 1, "of this one nothing would run again"


def test_what_is_compiled_has_its_extension_beside_it(tmp_path: Path) -> None:
    (tmp_path / "turn.cpython-311-x86_64-linux-gnu.so").touch()
    said = {name: compiled_again.is_compiled(tmp_path / name) for name in ("turn.py", "returning.py", "tur.py")}
    assert said == {"turn.py": True, "returning.py": False, "tur.py": False}


def test_that_nothing_is_compiled_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_again, "is_compiled", set[Path]().__contains__)
    monkeypatch.setattr(compiled_again, "WITHIN", (UNIT / "audit",))
    with pytest.raises(LookupError, match="make compiled"):
        files()
