"""Every test asserts something, itself or by what it calls: one that cannot fail shows nothing.

The linter finds the rest that can be read from the source: an assertion that is always true, one behind the call that
has to raise, a comparison that nobody asserts. Here a name stands for all functions of the tests that have it, so a
test that calls one of many ``run`` may slip through; an assertion that is never reached is not noticed.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from tests.support.programs import REPOSITORY

TESTS: Final = REPOSITORY / "tests"
_BEGIN: Final = re.compile(r"( *)(?:async )?(?:def|class) (\w+)")
_FAILS: Final = re.compile(
    r"^ *(?:assert|raise) |\bpytest\.(?:raises|warns|fail)\b|\basyncio\.timeout\(|\bcheck=True|\bcheck_returncode\("
)
_CALLED: Final = re.compile(r"\b(\w+)\(")
ACCEPTING: Final = {
    "api/test_ocsp.py": {"test_any_path_is_decoded_or_refused"},
    "attack/test_capabilities.py": {"test_what_we_ship_names_existing_cases"},
    "ca/test_key_policy.py": {"test_another_ca_s_device_may_have_a_key_that_this_one_would_not_certify"},
    "directory/test_closed_directory.py": {"test_what_others_only_read_or_do_not_reach_is_not_refused"},
    "pki/test_own_directory.py": {
        "test_a_link_that_leads_nowhere_and_a_file_are_somebody_else_s_complaint",
        "test_a_socket_s_mode_is_its_operator_s",
        "test_one_that_others_only_read_is_not",
    },
    "properties/test_provisioning_parsers.py": {
        "test_any_body_is_decoded_or_refused",
        "test_any_bytes_are_a_request_for_a_key_or_refused",
        "test_any_bytes_are_a_request_or_refused",
    },
    "properties/test_simulator_properties.py": {"test_what_is_no_telemetry_is_unreadable_and_nothing_else"},
    "signers/test_signing_trials.py": {"test_every_kind_of_key_is_tried"},
    "sockets/test_kernel_probes.py": {"test_what_has_no_such_settings_is_left_alone"},
    "stage/test_processes.py": {"test_a_command_is_run_to_its_end"},
}
"""Tests that something is *not* refused, or by no other error: the call would raise. Those beside show what is."""


@dataclass(slots=True)
class Block:
    """A function or a class, with what is defined within it."""

    file: Path
    name: str
    indent: int
    fails: bool = False
    """Whether something in it can fail a test."""
    calls: set[str] = field(default_factory=set)


def blocks(file: Path, lines: Sequence[str]) -> Iterator[Block]:
    """Yield the blocks of a formatted file: each ends where a line is indented no further than its own."""
    within: list[Block] = []
    is_text = False
    for line in lines:
        was_text, is_text = is_text, is_text ^ line.count('"""') % 2 == 1
        if was_text:
            continue
        if not line or line.startswith(")"):  # The end of the signature, of a function at the margin.
            continue
        indent = len(line) - len(line.lstrip())
        if line.lstrip().startswith((")", "]", "}")):
            indent += 1
        while within and indent <= within[-1].indent:
            yield within.pop()
        if begin := _BEGIN.match(line):
            within.append(Block(file, begin[2], len(begin[1])))
            continue
        fails, calls = bool(_FAILS.search(line)), _CALLED.findall(line)
        for each in within:
            each.fails |= fails
            each.calls.update(calls)
    yield from within


@functools.cache
def of_all_tests() -> tuple[Block, ...]:
    return tuple(
        block
        for file in sorted(TESTS.rglob("*.py"))
        for block in blocks(file, file.read_text(encoding="utf-8").splitlines())
    )


def failing(found: Sequence[Block]) -> set[str]:
    """Return the names of all that fails, or calls what does."""
    names = {each.name for each in found if each.fails}
    while more := {each.name for each in found if each.name not in names and not names.isdisjoint(each.calls)}:
        names |= more
    return names


def test_every_test_asserts_or_is_named_as_one_that_only_calls() -> None:
    names = failing(of_all_tests())
    tests = [each for each in of_all_tests() if each.name.startswith("test_") and each.file.name.startswith("test_")]
    accepting: dict[str, set[str]] = {}
    for each in tests:
        if not each.fails and names.isdisjoint(each.calls):
            accepting.setdefault("/".join(each.file.parts[-2:]), set()).add(each.name)
    assert len(tests) > 5000
    assert accepting == ACCEPTING


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def test_it(\n    one: int,\n) -> None:\n    assert one", {"test_it"}),
        ("def test_it() -> None:\n    one()\n\n\nassert one", set()),
        ("def test_it() -> None:\n    judge()\n\n\ndef judge() -> None:\n    assert one", {"test_it", "judge"}),
        ("class It:\n    def __call__(self) -> None:\n        raise Wrong\n\n    def other(self):\n        pass",
         {"It", "__call__"}),
        ('def test_it() -> None:\n    """Do not assert that."""\n    it("assert ")', set()),
    ],
    ids=["itself", "nowhere", "by what it calls", "in a class", "in words"],
)  # fmt: skip
def test_who_asserts_is_seen(text: str, expected: set[str]) -> None:
    assert failing(list(blocks(Path("test_it.py"), text.splitlines()))) == expected
