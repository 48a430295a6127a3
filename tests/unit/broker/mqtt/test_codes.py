from __future__ import annotations

import pytest

from broker.mqtt.codes import CONNECT_REASONS, ConnectReturnCode, ReasonCode, connect_return_code
from broker.mqtt.connect import CONNACK_REASONS


def test_a_return_code_survives_the_way_there_and_back() -> None:
    for return_code in ConnectReturnCode:
        assert connect_return_code(CONNECT_REASONS[return_code]) is return_code


@pytest.mark.parametrize(
    ("reason_code", "return_code"),
    [
        (ReasonCode.NOT_AUTHORIZED, ConnectReturnCode.NOT_AUTHORIZED),
        (ReasonCode.BANNED, ConnectReturnCode.SERVER_UNAVAILABLE),
        (ReasonCode.CLIENT_IDENTIFIER_NOT_VALID, ConnectReturnCode.IDENTIFIER_REJECTED),
        (ReasonCode.UNSUPPORTED_PROTOCOL_VERSION, ConnectReturnCode.UNACCEPTABLE_PROTOCOL_VERSION),
        (ReasonCode.BAD_AUTHENTICATION_METHOD, ConnectReturnCode.BAD_USER_NAME_OR_PASSWORD),
        (ReasonCode.SERVER_BUSY, ConnectReturnCode.SERVER_UNAVAILABLE),
        (ReasonCode.CONNECTION_RATE_EXCEEDED, ConnectReturnCode.SERVER_UNAVAILABLE),
        (ReasonCode.TOPIC_NAME_INVALID, ConnectReturnCode.NOT_AUTHORIZED),
    ],
)
def test_a_refusal_gets_the_nearest_return_code(reason_code: ReasonCode, return_code: ConnectReturnCode) -> None:
    assert connect_return_code(reason_code) is return_code


def test_only_success_is_accepted() -> None:
    accepted = {code for code in CONNACK_REASONS if connect_return_code(code) is ConnectReturnCode.ACCEPTED}

    assert accepted == {ReasonCode.SUCCESS}


def test_0x80_and_above_are_failures() -> None:
    assert not ReasonCode.RE_AUTHENTICATE.is_failure
    assert ReasonCode.UNSPECIFIED_ERROR.is_failure


def test_the_standard_has_43_values() -> None:
    assert len(ReasonCode) == 43
