from __future__ import annotations

from typing import Any, cast

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature

from device_sim.credentials import forgery
from device_sim.fleet import intruders
from device_sim.fleet.intruders import CASES, Finding, Outcome
from device_sim.link.closure import Closure, Layer, unasked_session
from device_sim.link.tls_dial import NotAdmitted
from provisioning.pki.identity import Identity, identity_of
from provisioning.pki.role import Role

REFUSED = Closure(Layer.MQTT, "0x85 Client identifier not valid", "", 0, 0x85)
VICTIM = Identity("fleet.internal", Role.DEVICE, "meter-1", "meters")


@pytest.mark.parametrize(
    ("closure", "outcome"),
    [
        (None, Outcome.ADMITTED),
        (Closure(Layer.TLS, "certificate_required", "", 0), Outcome.REFUSED),
        (Closure(Layer.TLS, "unknown_ca", "", 0), Outcome.REFUSED_OTHERWISE),
        (Closure(Layer.TCP, "closed", "", 0), Outcome.REFUSED_OTHERWISE),
        (Closure(Layer.TCP, "reset", "", 0), Outcome.REFUSED_OTHERWISE),
        (Closure(Layer.TCP, "timeout", "", 0), Outcome.UNDECIDED),
        (Closure(Layer.TCP, "error", "connection refused", 0), Outcome.UNDECIDED),
        (Closure(Layer.MQTT, "timeout", "", 0), Outcome.UNDECIDED),
        (Closure(Layer.TCP, "refused", "nobody listens there", 0), Outcome.UNDECIDED),
        (Closure(Layer.TLS, "server_certificate", "we refuse the server", 0), Outcome.UNDECIDED),
    ],
)
def test_silence_is_no_refusal_and_a_refusal_must_be_the_expected_one(
    closure: Closure | None, outcome: Outcome
) -> None:
    (case,) = (case for case in CASES if case.name == "no-certificate")
    assert Finding(case, closure, 0.1).outcome is outcome


@pytest.mark.parametrize(
    ("closure", "found"), [(unasked_session(0), None), (REFUSED, REFUSED)], ids=["session present", "refused"]
)
async def test_who_was_given_a_session_that_it_has_not_asked_for_was_let_in(
    monkeypatch: pytest.MonkeyPatch, closure: Closure, found: Closure | None
) -> None:
    """It leaves, as a client must [MQTT-3.2.2-4]: that is no refusal."""

    async def connects(*_: object) -> None:
        raise NotAdmitted(closure)

    monkeypatch.setattr(intruders, "_connects", connects)
    unused = cast("Any", None)
    assert await intruders._is_admitted(unused, unused, "meter-1") is found


def test_being_kept_out_of_the_broker_is_not_being_kept_off_a_topic() -> None:
    (case,) = (case for case in CASES if case.name == "other-topic")
    kept_out = Closure(Layer.MQTT, "0x87 Not authorized", "", 0, 0x87)
    assert Finding(case, kept_out, 0.1).outcome is Outcome.REFUSED_OTHERWISE


@pytest.mark.parametrize("forge", [forgery.self_signed, forgery.foreign])
def test_a_forged_certificate_names_its_victim(forge: object) -> None:
    held = forge(VICTIM)  # type: ignore[operator]
    assert held.identity == VICTIM
    assert identity_of(x509.load_pem_x509_certificate(held.certificate_pem)) == VICTIM


def test_only_the_self_signed_one_is_signed_by_itself() -> None:
    own = x509.load_pem_x509_certificate(forgery.self_signed(VICTIM).certificate_pem)
    own.verify_directly_issued_by(own)
    foreign = x509.load_pem_x509_certificate(forgery.foreign(VICTIM).certificate_pem)
    with pytest.raises((InvalidSignature, ValueError)):
        foreign.verify_directly_issued_by(foreign)
