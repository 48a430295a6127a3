from __future__ import annotations

import pytest

from device_sim.attack.attacking import _say_where_to_begin
from device_sim.attack.verdict import Judgement, Layer, Outcome, Seen, Verdict
from device_sim.view import View

NAME = "2-no-certificate"


def said(capsys: pytest.CaptureFixture[str], name: str, seen: Seen | None) -> str:
    _say_where_to_begin(View(), [Outcome(name, "", (), 10.0, Judgement(Verdict.FAIL), seen)])
    return capsys.readouterr().err


def test_a_broker_that_needs_no_certificate_is_called_that(capsys: pytest.CaptureFixture[str]) -> None:
    admitted = Seen(Layer.MQTT, "CONNACK 0x00", got_in=True)
    assert "let the broker require client certificates" in said(capsys, NAME, admitted)
    assert said(capsys, "3-expired", admitted) == ""
    for seen in (Seen(Layer.TLS, "certificate_required"), Seen(Layer.MQTT, "open", got_in=True), None):
        assert said(capsys, NAME, seen) == ""
