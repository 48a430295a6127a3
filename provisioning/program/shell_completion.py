"""What bash, zsh and fish offer at Tab.

A script that each shell has been given calls the program with the words typed so far. It is Typer's, except that of
bash (`provisioning.program.bash_script`). Typer finds which option or command the last word belongs to; what is
answered is ours.

Rules
-----
1. Files are offered where a file, or any text, may stand; not where a number does, nor where words are known, though
   none fits what was typed: a file's name is no reason to revoke. bash is told by the exit code, which Typer's script
   ignored.
2. ``--reason=key`` is completed like ``--reason key``. bash breaks words at ``=``, ``:`` and ``@``, which is undone
   first; and then it replaces the last part only, so that it gets no more.
3. zsh evaluates the answer: whatever is in it is quoted. Typer doubles apostrophes, which zsh then leaves out.
4. Help texts of commands are whole: the shell cuts what is too wide for its terminal.

Does not handle: PowerShell, which gets Typer's own answer.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final, get_args

import typer
from typer._click.shell_completion import CompletionItem, _resolve_context, _resolve_incomplete, split_arg_string
from typer.core import TyperArgument, TyperOption

_BREAKS: Final = ("=", ":", "@")
"""Of words, in bash (COMP_WORDBREAKS)."""
_REPLACED: Final = "@"
"""That of them which bash replaces with what is behind it."""


def answer(app: typer.Typer, program: str, instruction: str) -> tuple[str, int] | None:
    """Return what to print and the exit code for *instruction*, such as ``complete_zsh``; None if it is Typer's."""
    match instruction:
        case "complete_bash":
            return _bash(app, program)
        case "complete_zsh":
            return _zsh(app, program), 0
        case "complete_fish":
            return _fish(app, program)
        case _:
            return None


def _bash(app: typer.Typer, program: str) -> tuple[str, int]:
    # The words after the cursor's are not the program's concern yet.
    typed, last = split_arg_string(os.environ["COMP_WORDS"]), int(os.environ["COMP_CWORD"])
    words = _mended(typed, last)
    place = _Place(app, program, words[1:-1], words[-1])
    offered = place.offered()
    stays = _stays(place.begun, typed[last]) if last < len(typed) and typed[last] != words[-1] else 0
    return "\n".join(str(each.value)[stays:] for each in offered), int(not offered and not place.may_be_file)


def _stays(begun: str, part: str) -> int:
    """Return how much of the value that has *begun* bash leaves as it is, when it replaces its last *part*."""
    before = begun if part in _BREAKS else begun.removesuffix(part)
    return len(before.removesuffix(_REPLACED))


def _zsh(app: typer.Typer, program: str) -> str:
    words, last = _typed()
    place = _Place(app, program, words, last)
    # So that candidates are compared with what is behind the option's name.
    behind = "compset -P '*='; " if _names_option(last) else ""
    if offered := place.offered():
        items = " ".join(_quoted(_described(each)) for each in offered)
        return f"{behind}local -a offered; offered=({items}); _describe 'value' offered"
    return f"{behind}_files" if place.may_be_file else ""


def _fish(app: typer.Typer, program: str) -> tuple[str, int]:
    words, last = _typed()
    place = _Place(app, program, words, last)
    if os.environ.get("_TYPER_COMPLETE_FISH_ACTION") == "is-args":
        return "", int(place.may_be_file and not place.offered())  # 1: let fish offer files.
    name = f"{last.partition('=')[0]}=" if _names_option(last) else ""  # fish compares the whole word.
    lines = (f"{name}{each.value}" + (f"\t{_line(each.help)}" if each.help else "") for each in place.offered())
    return "\n".join(lines), 0


class _Place:
    """Where the last word stands: in place of an option's value, an argument, or a command or option itself."""

    def __init__(self, app: typer.Typer, program: str, words: list[str], last: str) -> None:
        self._context = _resolve_context(typer.main.get_command(app), {}, program, words)
        self._owner: Any
        self._owner, self.begun = _resolve_incomplete(self._context, words, last)

    @property
    def may_be_file(self) -> bool:
        """Whether a file may stand there."""
        if not isinstance(self._owner, TyperOption | TyperArgument):
            return False
        kind = self._owner.type_descriptor
        if kind.is_choice or not {kind.annotation, *get_args(kind.annotation)}.isdisjoint({int, float}):
            return False
        return self._owner._custom_shell_complete is None  # noqa: SLF001 - Typer tells nowhere else.

    def offered(self) -> Sequence[CompletionItem]:
        """Return what may stand there, and begins like it."""
        found: list[CompletionItem] = self._owner.shell_complete(self._context, self.begun)
        commands = getattr(self._owner, "commands", {})
        return [
            CompletionItem(each.value, help=_line(commands[each.value].help)) if each.value in commands else each
            for each in found
            if each.type == "plain"  # The others are marks for the shell, and no words.
        ]


def _typed() -> tuple[list[str], str]:
    """Return the whole words behind the program's name, and the last one, which may be empty."""
    line = os.environ["_TYPER_COMPLETE_ARGS"]
    words = split_arg_string(line)[1:]
    return (words, "") if not words or line.endswith(" ") else (words[:-1], words[-1])


def _mended(words: list[str], last: int) -> list[str]:
    """Return *words* up to the one at *last*, empty if it is not there, with those joined that bash has broken.

    The word to complete stays without what is before its ``=``, since bash replaces no more; Typer takes it as the
    option's value.
    """
    words = [*words[: last + 1], *[""] * (last + 1 - len(words))]
    mended: list[str] = []
    joined = False
    for number, word in enumerate(words):
        ends = number == last
        if word in _BREAKS and mended and not (ends and word == "="):
            if word == "=" and number == last - 1:
                joined = False  # The option's name stands alone, and its value behind it.
                continue
            mended[-1] += word
            joined = True
        elif joined:
            mended[-1] += word
            joined = False
        else:
            mended.append(word)
    return mended


def _names_option(word: str) -> bool:
    return word.startswith("--") and "=" in word


def _described(item: CompletionItem) -> str:
    """Return *item* as `_describe` of zsh takes it: the value, then a colon and its help."""
    value = str(item.value).replace("\\", "\\\\").replace(":", "\\:")
    return f"{value}:{_line(item.help)}" if item.help else value


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _line(text: str | None) -> str:
    """Return the first paragraph of *text* on one line."""
    return " ".join((text or "").split("\n\n", maxsplit=1)[0].split())
