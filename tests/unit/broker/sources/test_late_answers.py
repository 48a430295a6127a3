"""When it is said that a responder hardly answers."""

from __future__ import annotations

import pytest

from broker.sources import late_answers
from broker.sources.late_answers import LateAnswers, MostlyLate

URL = "http://ocsp.example/"


def test_a_minute_with_more_late_ones_than_answers_is_told_once_it_is_over() -> None:
    minutes = LateAnswers()
    assert minutes.answered("ours", URL, 0.0) is None
    for second in range(1, 60):
        assert minutes.late("ours", URL, float(second)) is None
    assert minutes.late("ours", URL, 60.0) == MostlyLate(1, 59)
    assert minutes.answered("ours", URL, 61.0) is None
    assert minutes.answered("ours", URL, 120.0) is None, "as many answers as late ones"
    assert minutes.late("ours", URL, 130.0) is None
    assert minutes.late("ours", URL, 140.0) is None
    assert minutes.answered("ours", URL, 1000.0) == MostlyLate(1, 2), "nobody asked meanwhile"


def test_what_another_bundle_or_responder_has_had_does_not_count() -> None:
    minutes = LateAnswers()
    minutes.answered("partner", URL, 2.0)
    minutes.answered("ours", f"{URL}other", 2.0)
    assert not minutes.has_answered_since("ours", URL, 1.0)
    minutes.answered("ours", URL, 2.0)
    assert minutes.has_answered_since("ours", URL, 1.0)
    assert not minutes.has_answered_since("ours", URL, 2.0), "that answer may have come before"
    minutes.late("ours", URL, 3.0)
    assert minutes.late("ours", URL, 62.0) is None
    minutes.late("ours", URL, 63.0)
    for _ in range(5):
        minutes.answered("partner", URL, 70.0)
    assert minutes.late("ours", URL, 122.0) == MostlyLate(0, 2)


def test_a_bundle_whose_certificates_name_many_makes_no_other_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(late_answers, "_MOST_RESPONDERS", 2)
    minutes = LateAnswers()
    for bundle, number in (("ours", 1), ("partner", 50)):
        for each in range(number):
            minutes.answered(bundle, f"{URL}{each}", 1.0)
    assert minutes.has_answered_since("ours", f"{URL}0", 0.0)
    assert len(minutes._minutes["partner"]) <= 2
