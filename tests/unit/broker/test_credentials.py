"""When the broker renews its certificate."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from broker.credentials import renewal_due
from provisioning.pki.keys import generate_key

GOT = datetime(2026, 11, 27, 12, tzinfo=UTC)
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
NOBODY = x509.Name([])


def certificate(backdate: timedelta, life: timedelta) -> x509.Certificate:
    key = generate_key()
    return (
        x509.CertificateBuilder(NOBODY, NOBODY, key.public_key(), 1, GOT - backdate, GOT + life).sign(  # type: ignore[arg-type]
            key, hashes.SHA256()
        )  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("backdate", "life", "due"),
    [
        (MINUTE, 30 * 24 * HOUR, 20 * 24 * HOUR - MINUTE / 3),
        (MINUTE, 8 * HOUR, 8 * HOUR * 2 / 3 - MINUTE / 3),
        (HOUR, 3 * HOUR, HOUR * 5 / 3),
        (MINUTE, MINUTE / 2, MINUTE / 3),
        (HOUR, MINUTE, MINUTE * 2 / 3),
    ],
    ids=["a month", "a shift", "dated back by an hour", "half a minute", "a minute, dated back by an hour"],
)
def test_it_is_due_at_two_thirds_of_its_life_or_of_what_was_left_when_it_came(
    backdate: timedelta, life: timedelta, due: timedelta
) -> None:
    assert renewal_due(certificate(backdate, life), GOT) - GOT == pytest.approx(due, abs=timedelta(milliseconds=1))


def test_what_was_there_before_the_process_is_due_when_it_was() -> None:
    assert renewal_due(certificate(HOUR, MINUTE), None) < GOT
