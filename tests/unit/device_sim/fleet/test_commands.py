from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from device_sim.fleet.commands import Answer, Command, UnreadableCommand, decode_answer, decode_command, execute


def double(arguments: Mapping[str, Any]) -> Any:
    if "n" not in arguments:
        raise ValueError("n: give a number")
    return 2 * arguments["n"]


ACTIONS = {"double": double}


def test_a_command_and_its_answer_survive_the_wire() -> None:
    command = Command("b-1", "double", {"n": 21})
    answer = execute(decode_command("double", command.encode()), ACTIONS)
    assert decode_answer(answer.encode()) == Answer("b-1", done=True, detail=42)


def test_a_command_that_the_device_does_not_know_is_answered() -> None:
    assert execute(Command("b-1", "explode", {}), ACTIONS) == Answer(
        "b-1", done=False, detail="unknown action 'explode'"
    )


def test_a_refusal_carries_its_reason() -> None:
    assert execute(Command("b-1", "double", {}), ACTIONS) == Answer("b-1", done=False, detail="n: give a number")


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "is no JSON"),
        (b"\xff\xfe", "is no JSON"),
        (b"[]", "is no JSON object"),
        (b"{}", "id: use a string"),
        (b'{"id":7}', "id: use a string"),
        (b'{"id":"b-1","arguments":[]}', "arguments: use a JSON object"),
    ],
)
def test_what_is_no_command_says_why(payload: bytes, reason: str) -> None:
    with pytest.raises(UnreadableCommand, match=reason):
        decode_command("double", payload)


def test_what_is_no_answer_says_why() -> None:
    with pytest.raises(UnreadableCommand, match="id"):
        decode_answer(b'{"done":true}')
