"""What is said beside the tokens that were made."""

from __future__ import annotations

import socket

import pytest

from provisioning.client.enrolment import EnrolmentOperatorClient
from provisioning.operator_commands import _say_if_new
from tests.support.pki import shared_device, shared_pki


async def test_a_token_that_was_made_is_no_failure_because_a_question_after_it_is_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # Taken, and nobody listens.
        address = f"https://127.0.0.1:{nobody.getsockname()[1]}"
        async with EnrolmentOperatorClient(address, shared_pki().anchors, shared_device("anna").credential) as client:
            await _say_if_new(client, "west")
    assert capsys.readouterr().err == ""
