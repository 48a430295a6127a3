"""Nothing is silently missing: statements, tests, reasons and the page agree."""

from __future__ import annotations

from tests.conformance.matrix import PAGE, collect, page, problems
from tests.conformance.statements import MQTT5, MQTT311


def test_every_statement_has_a_test_or_a_reason_and_every_test_a_statement() -> None:
    assert problems(collect()) == []


def test_the_lists_are_whole() -> None:
    assert (len(MQTT311), len(MQTT5)) == (141, 251)


def test_the_page_is_up_to_date() -> None:
    current = PAGE.read_text(encoding="utf-8")
    assert current == page(collect()), "run python tests/conformance/matrix.py"
