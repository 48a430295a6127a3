"""What runs again on the compiled hot path: ``python -m tests.support.compiled_again`` prints pytest's arguments.

`make test-compiled` tests the compiled hot path. A test that reaches none of it, or only through others that run again,
would merely repeat what it has shown for plain Python.

Rules
-----
1. In-process tests run again if they import something compiled, directly or through the parts of `tests` they use:
   `EVERYBODY_S` does not count. A module counts as compiled if its extension lies beside it. Those of `ASIDE` do not:
   they reach something compiled, and try something else.
2. Tests of whole processes all run again except those in `NOT_AGAIN`, each with its reason. So a new file runs again
   until a reason is given why it need not. Nor do the single tests in `TESTS_NOT_AGAIN`.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).parents[2]
TESTS: Final = REPOSITORY / "tests"
WITHIN: Final = (TESTS / "unit" / "broker", TESTS / "properties", TESTS / "conformance")
PROCESSES: Final = TESTS / "integration" / "broker"
EVERYBODY_S: Final = {TESTS / "support" / "pki.py"}
"""Makes certificates: a name in them is compiled, but merely having certificates made does not test it."""
_FILES: Final = "looks at a database's files, which is not compiled; what fills them is tried in others"
_PLUGINS: Final = "plugins are interpreted, and so is what asks them: they only count in compiled figures"
ASIDE: Final = {
    "admin/test_client.py": "the client of the admin socket is not compiled",
    "mosquitto/test_conversion.py": "what converts mosquitto's files is not compiled; policies are tried in others",
    "plugins/test_plugin_set.py": _PLUGINS,
    "plugins/test_questions.py": _PLUGINS,
    "store/test_database_files.py": _FILES,
    "store/test_soundness.py": _FILES,
    "test_preflight.py": "what looks before a start is not compiled",
}
"""What tries nothing compiled though it reaches some, by file below ``tests/unit/broker``."""
NOT_AGAIN: Final = {
    "test_admin.py": "the socket and the commands of operators, which are not compiled",
    "test_anchor_urls.py": "anchors are fetched and read by what is not compiled",
    "test_audit.py": "the log is written by what is not compiled",
    "test_ca_rollover.py": "the successor's certificates are read as any others",
    "test_clock.py": "compiled code is told the time",
    "test_clock_set_back.py": "compiled code is told the time",
    "test_contributed_plugins.py": "plugins are interpreted, and their adapter is",
    "test_dry_run.py": "a question of operators, answered by what is not compiled",
    "test_explain.py": "a question of operators, answered by what is not compiled",
    "test_failover.py": "the service's database fails, and its feed is followed by what is not compiled",
    "test_issuing_lines.py": "the service's authorities; the broker reads their certificates as any others",
    "test_judged_by_sslyze.py": "TLS is OpenSSL's",
    "test_judged_by_testssl.py": "TLS is OpenSSL's",
    "test_operator_door.py": "the door of operators is not compiled",
    "test_own_certificate.py": "what enrols and renews is not compiled",
    "test_plugins.py": "plugins are interpreted, and their adapter is",
    "test_restored_store.py": "the feed is followed by what is not compiled",
    "test_staple.py": "the staple is OpenSSL's, and fetched by what is not compiled",
    "test_start.py": "what a start imports is the same",
}
"""What no compiled code affects, by file below `PROCESSES`."""
TESTS_NOT_AGAIN: Final = {
    "test_chaos.py::test_whatever_happens_at_once_everybody_finds_what_it_was_told[bad-2]": (
        "the compiled path meets chaos with a disk that is full, and a bad disk in test_durability.py"
    ),
}
"""Costly single tests below `PROCESSES` of which others try as much of the compiled path."""


def files() -> list[Path]:
    """Return the test files that run again. Raises `LookupError` if nothing is compiled."""
    aside = {TESTS / "unit" / "broker" / name for name in ASIDE}
    within = [
        file
        for folder in WITHIN
        for file in sorted(folder.rglob("test_*.py"))
        if file not in aside and any(is_compiled(each) for each in reached(file))
    ]
    if not within:
        raise LookupError(f"nothing in {REPOSITORY} is compiled: make compiled")
    return [*within, *(file for file in sorted(PROCESSES.glob("test_*.py")) if file.name not in NOT_AGAIN)]


def left_out() -> list[str]:
    """Return the arguments with which pytest runs no test of `TESTS_NOT_AGAIN`."""
    return [f"--deselect={(PROCESSES / each).relative_to(REPOSITORY)}" for each in TESTS_NOT_AGAIN]


def is_compiled(module: Path) -> bool:
    """Whether *module*, a source file, is replaced by a compiled one."""
    return any(module.parent.glob(f"{module.stem}.*.so"))


def reached(tests: Path) -> frozenset[Path]:
    """Return our modules that the file *tests* imports, directly or through what it uses of `tests`."""
    found: set[Path] = set()
    waiting = [tests, *_fixtures_of(tests)]
    while waiting:
        file = waiting.pop()
        if file in found or file in EVERYBODY_S or not file.exists():
            continue
        found.add(file)
        if file.is_relative_to(TESTS):
            waiting += _imported(file)
    return frozenset(found)


def _fixtures_of(tests: Path) -> Iterator[Path]:
    """Yield each ``conftest.py`` with a fixture that *tests* requests."""
    asked = {each.arg for each in ast.walk(_parsed(tests)) if isinstance(each, ast.arg)}
    for folder in tests.parents:
        shared = folder / "conftest.py"
        if folder.is_relative_to(TESTS) and shared.exists():
            offered = {
                each.name for each in _parsed(shared).body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
            }
            if asked & offered:
                yield shared


@functools.cache
def _parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_bytes())


@functools.cache
def _imported(file: Path) -> tuple[Path, ...]:
    """Return candidate paths of the modules that *file* imports; some, for names inside a module, do not exist."""
    names: set[str] = set()
    for node in ast.walk(_parsed(file)):
        if isinstance(node, ast.Import):
            names.update(each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names.add(node.module)
            names.update(f"{node.module}.{each.name}" for each in node.names)
    return tuple((REPOSITORY / name.replace(".", "/")).with_suffix(".py") for name in sorted(names))


if __name__ == "__main__":
    print(*(file.relative_to(REPOSITORY) for file in files()), *left_out())  # noqa: T201 - that is what it is for
