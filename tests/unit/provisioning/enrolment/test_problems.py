from __future__ import annotations

import json

import pytest

from provisioning.enrolment.problems import STATUSES, problem_answer, text_answer
from provisioning.errors import Code, Refused


@pytest.mark.parametrize("code", Code)
def test_every_code_has_an_answer_in_both_forms(code: Code) -> None:
    refusal = Refused(code, "the sentence")
    text, problem = text_answer(refusal), problem_answer(refusal)
    assert text.status_code == problem.status_code == STATUSES[code] >= 400
    assert text.body == f"{code.value}: the sentence\n".encode()
    document = json.loads(bytes(problem.body))
    assert (document["code"], document["detail"], document["status"]) == (code.value, "the sentence", STATUSES[code])
    assert problem.headers["content-type"] == "application/problem+json"
    for answer in (text, problem):
        assert ("retry-after" in answer.headers) is (STATUSES[code] in {429, 503}), "as the API's description says"


def test_an_answer_says_how_to_go_on() -> None:
    assert text_answer(Refused(Code.TOKEN_USED, "")).headers["www-authenticate"].startswith("Basic ")
    assert text_answer(Refused(Code.UNAVAILABLE, "")).headers["retry-after"] == "5"
    assert text_answer(Refused(Code.BODY_TOO_LARGE, "")).headers["connection"] == "close"


def test_whoever_is_told_to_authenticate_is_told_how() -> None:
    """RFC 9110 §15.5.2. For a certificate there is no scheme: without one, the request is forbidden."""
    for code in Code:
        for answer in (problem_answer(Refused(code, "")), text_answer(Refused(code, ""))):
            assert (answer.status_code == 401) == ("www-authenticate" in answer.headers), code
