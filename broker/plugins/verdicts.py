"""Recent answers of topic plugins: who may do what with which topic.

Rules
-----
1. Bounded in number (a long topic counts for several, the oldest is dropped first) and in time: after `lifetime`
   seconds the question is asked again.
2. For a message already under way an old answer is better than none (`known`); plugins are asked again only for a
   packet that can wait (`fresh`).
3. No I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Callable

from broker.admission.refusal import RefusalCode
from broker.engine.extension import Action

_ONE = 512
"""Characters of a topic up to which an answer counts as one: a client may choose 65,535 of them."""

Question = tuple[object, Action, str]
"""The standing (a new one at each connection of a session), the action and the topic."""


class Verdicts:
    """Answers by question: None permits, a code refuses."""

    def __init__(self, most: Callable[[], int], lifetime: float) -> None:
        """Keep *most()* answers, for *lifetime* seconds."""
        self._most = most
        self._lifetime = lifetime
        self._answers: dict[Question, tuple[RefusalCode | None, float]] = {}
        self._size = 0

    def __len__(self) -> int:
        return len(self._answers)

    def fresh(self, question: Question, now: float) -> bool:
        """Whether the answer to *question* is still valid at *now*."""
        found = self._answers.get(question)
        return found is not None and now < found[1]

    def known(self, question: Question) -> RefusalCode | None:
        """Return the last answer to *question*; without one it is refused."""
        found = self._answers.get(question)
        return RefusalCode.PLUGIN_FAILED if found is None else found[0]

    def put(self, question: Question, refusal: RefusalCode | None, now: float, lifetime: float | None = None) -> None:
        """Remember an answer given at *now*, for *lifetime* seconds if it has its own."""
        answers = self._answers
        if answers.pop(question, None) is None:  # Removed first, so that the oldest stays the first.
            self._size += _size(question)
        answers[question] = refusal, now + (self._lifetime if lifetime is None else lifetime)
        while self._size > self._most() and len(answers) > 1:
            oldest = next(iter(answers))
            self._size -= _size(oldest)
            del answers[oldest]


def _size(question: Question) -> int:
    return 1 + len(question[2]) // _ONE
