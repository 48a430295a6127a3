"""OCSP requests that arrived complete: answered without the ASGI interface for bodies in pieces.

A request and its response are two packets. The ASGI overhead (a task, messages, layers) is most of the cost of
a response that was signed before. A request that needs no look-up is answered in the turn that read it.

Rules
-----
1. Every answer is what `provisioning.api.ocsp.OcspEndpoint` gives, to the byte; a test compares.
"""

from __future__ import annotations

from typing import Final

from starlette.types import Scope

from provisioning.api.ocsp import MAXIMUM_PATH, MAXIMUM_REQUEST, PREFIX, OcspQuestions
from provisioning.connections.written_answer import Answering, ReadyAnswer

_POSTED: Final = PREFIX.encode()
_ASKED: Final = f"{PREFIX}/".encode()


class WholeOcsp:
    """Answers OCSP requests, and takes nothing else."""

    def __init__(self, questions: OcspQuestions) -> None:
        self._questions = questions

    def takes(self, method: bytes, target: bytes, size: int) -> bool:
        """Whether it is a POST or a GET as clients send them; the odd ones are the endpoint's."""
        if method == b"POST":
            return target == _POSTED and size <= MAXIMUM_REQUEST
        return (
            method == b"GET"
            and not size
            and target.startswith(_ASKED)
            and len(target) <= MAXIMUM_PATH
            and target.isascii()
            and b"?" not in target
            and b"#" not in target
        )

    def answering(self, scope: Scope, body: bytes) -> Answering:
        """Return the answer, or what answers."""
        questions = self._questions
        too_often = questions.too_often(scope)
        if too_often is not None:
            return too_often.ready()
        asked = questions.in_body(scope, body) if scope["method"] == "POST" else questions.in_path(scope["raw_path"])
        if not isinstance(asked, bytes):
            return asked.ready()
        reply = questions.answered_at_once(scope, asked)
        return self._later(scope, asked) if reply is None else reply.ready()

    async def _later(self, scope: Scope, request: bytes) -> ReadyAnswer:
        return (await self._questions.answered(scope, request)).ready()
