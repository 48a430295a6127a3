"""Options of which only some words are valid: the same words in help, completion and errors, in upper or lower case."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import typer

WordT = TypeVar("WordT", bound=str)


def choice_option(words: Sequence[str], about: str = "", *names: str) -> Any:
    """Return an option with the *names*, by default that of its parameter, that takes one of *words*.

    Its help is *about*, followed by the words. Without the option nothing is chosen.
    """
    listed = f"{', '.join(words[:-1])} or {words[-1]}"
    return typer.Option(
        *names,
        metavar="WORD",
        parser=one_of(words),
        autocompletion=lambda: list(words),
        help=f"{about}{listed}.",
        show_default=False,
    )


def one_of(words: Sequence[WordT], hint: Callable[[str], str] = lambda _: "") -> Callable[[str], WordT]:
    """Return the parser for one of *words*; its error lists them, followed by the *hint* about what was given."""
    by_word = {word.casefold(): word for word in words}

    def read(text: str) -> WordT:
        word = by_word.get(text.casefold())
        if word is None:
            raise typer.BadParameter(f"{text!r} is not one of {', '.join(words)}{hint(text)}")
        return word

    return read
