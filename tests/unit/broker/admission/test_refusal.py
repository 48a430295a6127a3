"""What a refused or disconnected client is told: the code, the sentence, and when to come again."""

from __future__ import annotations

import pytest

from broker.admission.refusal import RefusalCode, Refused, told
from broker.mqtt.codes import ReasonCode


def hint(code: str, connected: int = 0, after: float | None = None) -> str | None:
    return dict(told(code, "", connected, after).user_properties).get("retry-after")


@pytest.mark.parametrize("code", ["REVOKED", "EXPIRED", "NO_CERTIFICATE", "CLIENT_ID_MISMATCH", "KICKED", "BAD_PACKET"])
def test_no_time_is_named_where_coming_again_helps_nothing(code: str) -> None:
    properties = told(code, "why")
    assert properties.user_properties == ()
    assert properties.reason_string == f"{code}: why"


@pytest.mark.parametrize(
    "code",
    [
        "CRL_EXPIRED",
        "CRL_MISSING",
        "OCSP_UNAVAILABLE",
        "OCSP_UNKNOWN",
        "REVOCATION_STATUS_UNKNOWN",
        "AUDIT_UNAVAILABLE",
    ],
)
def test_who_is_not_known_now_is_asked_to_come_again(code: str) -> None:
    assert hint(code) == "30"


@pytest.mark.parametrize(("code", "seconds"), [("RATE_LIMITED", "10"), ("LIFETIME_OVER", "0"), ("TRUST_CHANGED", "0")])
def test_who_comes_too_often_waits_and_who_is_good_comes_again_at_once(code: str, seconds: str) -> None:
    assert hint(code) == seconds
    assert hint(RefusalCode.SHUTTING_DOWN) == "1", "nobody else is put out"


def test_a_broker_that_stops_spreads_its_clients() -> None:
    hints = [int(hint(RefusalCode.SHUTTING_DOWN, connected) or 0) for connected in range(10_000, 0, -1)]
    assert (hints[0], hints[-1]) == (21, 2)
    assert max(hints.count(second) for second in set(hints)) == 500


def test_a_code_is_what_it_is_called() -> None:
    """Alerts, dashboards and devices have it by its text."""
    assert [str(code) for code in RefusalCode] == [code.name for code in RefusalCode]


def test_who_is_refused_is_not_told_what_the_operator_is() -> None:
    refusal = Refused(RefusalCode.WRONG_GROUP, ReasonCode.NOT_AUTHORIZED, "not of this bundle", aside="groups = ['a']")
    assert refusal.recorded == "not of this bundle: groups = ['a']"
    assert refusal.told.reason_string == "WRONG_GROUP: not of this bundle"
    assert Refused(RefusalCode.REVOKED, ReasonCode.NOT_AUTHORIZED, "why").recorded == "why"


def test_a_ban_says_how_long_it_lasts_still() -> None:
    refusal = Refused(RefusalCode.FLAPPING, ReasonCode.BANNED, "why", retry_after=12.3)
    assert dict(refusal.told.user_properties) == {"retry-after": "13"}
