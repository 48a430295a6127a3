"""How often a peer may change its keys: so often in a second, each session for itself, and no session for another."""

from __future__ import annotations

import ssl
from dataclasses import dataclass

import pytest

from provisioning.pki import key_updates, openssl
from provisioning.pki.key_updates import bound_key_updates, changed_keys_too_often

pytestmark = [
    pytest.mark.skipif(not openssl.AVAILABLE, reason="OpenSSL cannot be called directly here"),
    pytest.mark.skipif(not key_updates.__file__.endswith(".py"), reason="compiled code looks at its own clock"),
]

MOST = key_updates._MOST_STEPS


@dataclass
class Clock:
    now: float = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(key_updates, "_monotonic", clock.monotonic)
    monkeypatch.setattr(key_updates._second, "began", clock.now)
    return clock


@pytest.fixture
def session() -> ssl.SSLObject:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made = context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True)
    bound_key_updates(openssl.address_of(made))
    return made


def change_keys(session: ssl.SSLObject, steps: int) -> bool:
    """Take so many *steps*, as OpenSSL reports them; return whether they were too many."""
    for _ in range(steps):
        key_updates._count_step(openssl.address_of(session), 0, 0)
    return changed_keys_too_often(openssl.address_of(session))


def test_the_steps_of_a_second_are_bounded_and_not_those_of_a_long_life(session: ssl.SSLObject, clock: Clock) -> None:
    for _ in range(5):
        assert not change_keys(session, MOST)
        clock.now += 1.01
    assert not change_keys(session, MOST)
    clock.now += 0.9
    assert change_keys(session, 1)


def test_why_a_session_has_ended_is_said_once(session: ssl.SSLObject, clock: Clock) -> None:
    assert change_keys(session, MOST + 1)
    clock.now += 1.01
    assert not change_keys(session, 1)


def test_a_new_session_does_not_pay_for_an_earlier_one_at_its_address(session: ssl.SSLObject, clock: Clock) -> None:
    """OpenSSL uses memory again at once, and nobody need have asked why the earlier one ended."""
    del clock
    for _ in range(MOST + 1):
        key_updates._count_step(openssl.address_of(session), 0, 0)
    bound_key_updates(openssl.address_of(session))
    assert not change_keys(session, MOST)
