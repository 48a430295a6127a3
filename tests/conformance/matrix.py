"""Which test shows which statement: gathered from the names of the tests, and written to docs/conformance.md.

A test is called ``test_``, then one or more statements, then what it checks:
``test_mqtt5_3_3_4_2_mqtt311_3_3_5_1_overlapping_subscriptions_get_the_highest_qos``. Its docstring is the text of the
first statement. ``python tests/conformance/matrix.py`` writes the page and these docstrings anew.

Rules
-----
1. Every statement has a test or a reason why there is none, not both; `problems` says what is missing or too much.
2. The tests are read, not imported: the names are all that counts here, and running them is pytest's business.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
REPOSITORY: Final = HERE.parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(REPOSITORY))

from tests.conformance.not_applicable import KINDS, NOT_APPLICABLE  # noqa: E402
from tests.conformance.statements import VERSIONS  # noqa: E402

PAGE: Final = REPOSITORY / "docs" / "conformance.md"
TITLES: Final = {"mqtt5": "MQTT 5.0", "mqtt311": "MQTT 3.1.1"}
_STATEMENT: Final = re.compile(r"(mqtt5|mqtt311)_(\d+)_(\d+)_(\d+)_(\d+)_")

Statement = tuple[str, str]
"""Version and number: ``("mqtt5", "3.3.4-2")``."""


@dataclass(frozen=True, slots=True)
class Test:
    """One test function, and the statements that it names."""

    file: str
    name: str
    line: int
    statements: tuple[Statement, ...]
    docstring: str | None
    expected_to_fail: bool

    @property
    def link(self) -> str:
        """The test as a link of the page."""
        what = re.sub(r"^test_(?:mqtt\d+_\d+_\d+_\d+_\d+_)*", "", self.name).replace("_", " ")
        mark = " **(known deviation)**" if self.expected_to_fail else ""
        return f"[{what}](../tests/conformance/{self.file}){mark}"


def collect() -> list[Test]:
    """Return every test of this folder but those of the matrix itself."""
    return [
        test for path in sorted(HERE.glob("test_*.py")) if path.name != "test_matrix.py" for test in _tests_of(path)
    ]


def _tests_of(path: Path) -> Iterator[Test]:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            xfail = any("xfail" in ast.unparse(decorator) for decorator in node.decorator_list)
            statements = tuple(_statements_of(node.name))
            yield Test(path.name, node.name, node.body[0].lineno, statements, ast.get_docstring(node), xfail)


def _statements_of(name: str) -> Iterator[Statement]:
    position = len("test_")
    while match := _STATEMENT.match(name, position):
        version, chapter, section, part, number = match.groups()
        yield version, f"{chapter}.{section}.{part}-{number}"
        position = match.end()


def text_of(statement: Statement) -> str | None:
    """Return the text of *statement*, or None if there is no such statement."""
    version, number = statement
    return VERSIONS[version].get(number)


def every_statement() -> list[Statement]:
    """Return all statements of both versions."""
    return [(version, number) for version, texts in VERSIONS.items() for number in texts]


def problems(tests: list[Test]) -> list[str]:
    """Return what is wrong between statements, tests and reasons, as sentences."""
    found = []
    shown = {statement for test in tests for statement in test.statements}
    for test in tests:
        if not test.statements:
            found.append(f"{test.file}: {test.name} names no statement")
            continue
        found += [f"{test.name}: there is no {_name(each)}" for each in test.statements if text_of(each) is None]
        if test.docstring != text_of(test.statements[0]):
            found.append(f"{test.name}: its docstring is not the text of {_name(test.statements[0])}")
    for statement in every_statement():
        has_reason = statement in NOT_APPLICABLE
        if statement not in shown and not has_reason:
            found.append(f"{_name(statement)} has neither a test nor a reason")
        if statement in shown and has_reason:
            found.append(f"{_name(statement)} has both a test and a reason")
    found += [
        f"a reason is given for {_name(each)}, which does not exist" for each in NOT_APPLICABLE if not text_of(each)
    ]
    return found


def page(tests: list[Test]) -> str:
    """Return docs/conformance.md."""
    shown: dict[Statement, list[Test]] = {}
    for test in tests:
        for statement in test.statements:
            shown.setdefault(statement, []).append(test)
    lines = [
        "# Conformance",
        "",
        "Every numbered normative statement of MQTT 5.0 and MQTT 3.1.1, with the test that shows it or the reason why",
        "there is none. The tests drive the broker's real engine and connections over an in-memory wire, with a clock",
        "that the test controls: `pytest tests/conformance`. Statements are abridged; the standards are authoritative.",
        "",
        "Generated by `python tests/conformance/matrix.py`; a test fails when this page is out of date.",
        "",
        "| | statements | tested | " + " | ".join(KINDS.values()) + " |",
        "|---|---|---|" + "---|" * len(KINDS),
    ]
    for version, title in TITLES.items():
        kinds = Counter(kind for (of, _), (kind, _) in NOT_APPLICABLE.items() if of == version)
        tested = sum(1 for of, _ in shown if of == version)
        counts = " | ".join(str(kinds[kind]) for kind in KINDS)
        lines.append(f"| {title} | {len(VERSIONS[version])} | {tested} | {counts} |")
    deviations = [test for test in tests if test.expected_to_fail]
    if deviations:
        lines += ["", "Known deviations, each a test that is expected to fail and would be noticed if it passed:", ""]
        lines += [f"* {', '.join(map(_name, test.statements))}: {test.link}" for test in deviations]
    for version, title in TITLES.items():
        lines += ["", f"## {title}", "", "| statement | in short | shown by |", "|---|---|---|"]
        for number, text in VERSIONS[version].items():
            statement = version, number
            if statement in NOT_APPLICABLE:
                kind, reason = NOT_APPLICABLE[statement]
                answer = f"*{KINDS[kind]}*: {reason}"
            else:
                answer = "; ".join(test.link for test in shown.get(statement, ()))
            lines.append(f"| MQTT-{number} | {text} | {answer} |")
    return "\n".join(lines) + "\n"


def write_docstrings(tests: list[Test]) -> None:
    """Give each test the text of its first statement as its docstring."""
    for file in sorted({test.file for test in tests}):
        path = HERE / file
        lines = path.read_text(encoding="utf-8").splitlines()
        for test in sorted((each for each in tests if each.file == file), key=lambda each: -each.line):
            text = text_of(test.statements[0]) if test.statements else None
            if text is None or test.docstring == text:
                continue
            docstring = f'    """{text}"""'
            if test.docstring is None:
                lines.insert(test.line - 1, docstring)
            else:
                lines[test.line - 1] = docstring
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _name(statement: Statement) -> str:
    return f"{TITLES[statement[0]]} [MQTT-{statement[1]}]"


def main() -> int:
    """Write the docstrings and the page; say what is wrong."""
    write_docstrings(collect())
    tests = collect()
    PAGE.write_text(page(tests), encoding="utf-8")
    for problem in problems(tests):
        sys.stderr.write(f"{problem}\n")
    return 1 if problems(tests) else 0


if __name__ == "__main__":
    sys.exit(main())
