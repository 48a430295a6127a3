"""Every command that a page tells its reader to run is one of the programs', with options that it has.

Pages whose commands are run in tests are read here too; most are not, for they need a fleet, a token or a day.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import broker.cli
import device_sim.cli
import provisioning.cli
from tests.support.provisioning import REPOSITORY

PROGRAMS = {"fleet-provisioning": provisioning.cli.app, "fleet-broker": broker.cli.app, "fleet-sim": device_sim.cli.app}
PAGES = [
    REPOSITORY / "README.md",
    *(page for folder in ("docs", "docs/reference") for page in sorted((REPOSITORY / folder).glob("*.md"))),
]
"""Without the decisions: those tell what was so when they were made."""

_FROM_AN_INDEX = re.compile(r"pip install (?:-\S+ )*['\"]?fleetgate\b(?!-)")
_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"^    .*$", re.MULTILINE)
_MARK = re.compile(r"`([^`\n]+)`")
_WRAPPED = re.compile(r"\n +")
_SEPARATORS = set("();<>|&")
_BEFORE_A_UNIT = {"-u", "reload", "disable", "stop", "start", "--now"}
"""systemd's units have the names of the programs."""


def snippets(page: Path) -> Iterator[str]:
    """Return what *page* shows as commands: blocks of shell, indented lines, and marks in sentences."""
    text = page.read_text(encoding="utf-8")
    for language, content in _FENCED.findall(text):
        if language in {"sh", "ini"}:
            yield content.replace("\\\n", " ")
    prose = _FENCED.sub("", text)
    yield "\n".join(_INDENTED.findall(prose.replace("\\\n", " ")))
    yield from _MARK.findall(_WRAPPED.sub(" ", prose))


def commands(snippet: str) -> Iterator[list[str]]:
    """Return the words of each command of ours in *snippet*."""
    lines = snippet.splitlines()
    while lines:
        text = lines.pop(0)
        while (words := split(text)) is None and lines:
            text = f"{text} {lines.pop(0)}"
        command: list[str] | None = None
        before = ""
        for word in words or ():
            if command is not None and not set(word) <= _SEPARATORS:
                command.append(word)
            else:
                if command is not None:
                    yield command
                command = [word] if word in PROGRAMS and before not in _BEFORE_A_UNIT else None
            before = word
        if command is not None:
            yield command


def split(line: str) -> list[str] | None:
    """Return the shell's words of *line*; None if a quotation goes on in the next one."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    try:
        return list(lexer)
    except ValueError:
        return None


def wrong(words: list[str]) -> str | None:
    """Return what *words* say that their program does not know."""
    command: Any = typer.main.get_command(PROGRAMS[words[0]])
    rest = words[1:]
    if rest[:1] == ["ready"]:  # What they print.
        return None
    while rest:
        word = rest.pop(0)
        if word.startswith("-"):
            name, _, value = word.partition("=")
            options = [param for param in command.params if name in (*param.opts, *param.secondary_opts)]
            if not options:
                return None if name == "--help" else f"no option {name}"
            if not value and rest and not getattr(options[0], "is_flag", False):
                rest.pop(0)
        elif hasattr(command, "commands"):
            if word not in command.commands:
                return f"no command {word}"
            command = command.commands[word]
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_command_is_one_of_the_programs(page: Path) -> None:
    found = [(wrong(words), " ".join(words)) for snippet in snippets(page) for words in commands(snippet)]
    assert [each for each in found if each[0] is not None] == []


def test_what_is_not_theirs_is_noticed() -> None:
    told = "x && fleet-provisioning token crate | sort; ca fleet-broker why m --jsn\nfleet-sim run a --output=o --quit"
    assert [wrong(words) for words in commands(told)] == ["no command crate", "no option --jsn", "no option --quit"]
    assert sum(1 for page in PAGES for snippet in snippets(page) for _ in commands(snippet)) > 250


def test_nobody_is_told_to_install_what_a_stranger_may_publish_under_our_name() -> None:
    """No package index has this product: whoever registers the name there would run code on a CA's host."""
    sources = [
        path for package in ("provisioning", "broker", "device_sim") for path in (REPOSITORY / package).rglob("*.py")
    ]
    told = {path.name: _FROM_AN_INDEX.findall(path.read_text(encoding="utf-8")) for path in (*PAGES, *sources)}
    assert {name: found for name, found in told.items() if found} == {}
    assert _FROM_AN_INDEX.search("pip install --user 'fleetgate[postgres]'")
    assert not _FROM_AN_INDEX.search("pip install .build/dist/fleetgate-*.whl")
