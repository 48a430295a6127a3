"""What an operator is advised to do about a code."""

from __future__ import annotations

from broker.admission.remedy import REMEDIES


def test_who_does_not_trust_the_broker_may_have_a_wrong_clock() -> None:
    # A device that starts before its clock is set finds every certificate not yet valid, and its alert does not say so.
    assert REMEDIES["BROKER_NOT_TRUSTED"].endswith("; its clock may be wrong")
