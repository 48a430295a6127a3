"""The webhook: an operator's service that may veto. It never admits on its own.

Theory
------
A transaction must not wait for the network. So `vouch` without an answer raises `Unasked` with the question, the
transaction is rolled back, the question is asked (`provisioning.enrolment.webhook`), and the transaction runs again
with the answer: everything else is decided again, and an answer to another question is ignored. No answer is a refusal
by this alternative like a veto is: the group's other ones count as they do beside a veto.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

from sqlalchemy.engine import Connection

from provisioning.enrolment.attempt import Attempt, Question, Verdict
from provisioning.enrolment.ways.way import Vouched, Way
from provisioning.errors import Code, Refused
from provisioning.store import devices
from provisioning.store.groups import Group, WayName


class Unasked(Exception):
    """The webhook has to be asked *question* first."""

    def __init__(self, question: Question) -> None:
        super().__init__(question)
        self.question = question


class WebhookWay(Way):
    """A condition: nothing is presented for it but the request itself."""

    name: ClassVar[WayName] = WayName.WEBHOOK

    @classmethod
    def presented(cls, connection: Connection, attempt: Attempt) -> Self | None:  # noqa: ARG003 - a way's signature
        """Apply to every request."""
        return cls()

    def vouch(self, connection: Connection, attempt: Attempt, group: Group, shown: Sequence[Vouched]) -> Vouched:
        """Vouch or refuse as the webhook answered; raise `Unasked` if it was not asked this question."""
        if group.webhook_url is None:
            raise Refused(Code.WEBHOOK_FAILED, f"group {group.name} has no webhook_url: the operator has to set it")
        name = attempt.request.common_name
        question = Question(
            group.webhook_url,
            group.webhook_timeout,
            group.name,
            name,
            attempt.request.key_fingerprint.hex(),
            tuple(each.credential for each in shown),
            devices.find(connection, name) is not None,
            attempt.shown,
            attempt.presented,
        )
        verdict = next((each for each in attempt.verdicts if _is_about(each, question)), None)
        if verdict is None:
            raise Unasked(question)
        if verdict.failure is not None:
            raise verdict.failure
        if not verdict.allowed:
            reason = verdict.reason or "it gave no reason"
            raise Refused(Code.WEBHOOK_VETO, f"the webhook of group {group.name} has refused {name}: {reason}")
        return Vouched(group.name, "webhook")


def _is_about(verdict: Verdict, question: Question) -> bool:
    """Whether *verdict* answers *question*, or says that its webhook does not answer: it is not waited for twice."""
    return verdict.question == question or (verdict.failure is not None and verdict.question.url == question.url)
