"""Whether the service knows that a token does not sign: readiness says so without a request that needs it."""

from __future__ import annotations

import threading

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from structlog.testing import capture_logs

from provisioning.api.health import Readiness
from provisioning.authorities import signing_trials
from provisioning.authorities.signing_trials import SigningTrials
from provisioning.ca.ceremony import found_authority
from provisioning.ca.issuer import Issuer
from provisioning.ca.signing import try_key
from provisioning.enrolment.issuing import Issuing
from provisioning.errors import Refused
from provisioning.pki.keys import PrivateKey, generate_key
from provisioning.signers import pkcs11_module, token_key
from provisioning.signers.pkcs11 import Pkcs11Signer
from provisioning.signers.pkcs11_uri import Pkcs11Uri
from provisioning.store.authorities import DEFAULT_LINE
from provisioning.store.database import Database
from tests.support.requests import NOON
from tests.support.slow_keys import rsa_key
from tests.support.softhsm import PIN, FaultyModule, SoftToken


def trying() -> set[threading.Thread]:
    """The threads in which something is tried now; another test's may still be on its way out."""
    return {each for each in threading.enumerate() if each.name == "signing-trial"}


class Ready:
    """A CA whose key is in a token, its trials, and what readiness makes of them."""

    def __init__(self, token: SoftToken, label: str) -> None:
        signer = Pkcs11Signer(Pkcs11Uri(token.module, token.label, label), lambda: PIN)
        self.key = signer.create()
        authority = found_authority("fleet.internal", NOON, (1 << 126, 1 << 125), keys=(generate_key(), self.key))
        issuer = Issuer(authority.issuing_ca.certificate, authority.issuing_ca.key)
        assert not issuer.key_in_memory
        self.trials = SigningTrials(lambda: [issuer])
        self._active = {DEFAULT_LINE: Issuing(issuer)}

    async def says(self) -> str:
        readiness = Readiness(
            Database("sqlite://"), lambda: self._active, list, {}, lambda: NOON, lambda: self.trials.signs
        )
        return await readiness.checks()["issuing_ca"]()


async def test_a_token_that_is_away_is_not_ready_until_it_is_back(
    token: SoftToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pkcs11_module, "_PAUSE_SECONDS", 0.0)
    ready = Ready(token, "trial-away")
    await ready.trials.look()
    assert await ready.says() == "ok"
    folder = token.configuration.parent / "tokens"
    with capture_logs() as logs:
        folder.rename(folder.with_name("elsewhere"))
        try:
            for _ in range(2):
                await ready.trials.look()
                assert await ready.says() == "not signing"
        finally:
            folder.with_name("elsewhere").rename(folder)
        for _ in range(2):
            await ready.trials.look()
            assert await ready.says() == "ok"
    said = [each["event"] for each in logs if each.get("code", "").startswith("SIGNER_") and "key" not in each]
    assert said == ["no token with a CA key signs: nothing is issued", "all tokens with CA keys sign again"], (
        "besides what its key says"
    )


async def test_a_token_that_does_not_answer_is_not_ready_and_is_asked_once(
    token: SoftToken, faulty: FaultyModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = Ready(token, "trial-stuck")
    monkeypatch.setattr(signing_trials, "_PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(token_key, "_SIGN_SECONDS", 60.0)
    before = trying()
    faulty.tell("C_Sign", "hang")
    for _ in range(2):
        await ready.trials.look()
        assert await ready.says() == "not signing"
    (stuck,) = trying() - before
    assert stuck.daemon, "no stop waits for it"
    faulty.mend("C_Sign")
    monkeypatch.setattr(signing_trials, "_PATIENCE_SECONDS", 30.0)
    await ready.trials.look()
    assert await ready.says() == "ok"


async def test_where_no_thread_is_to_be_had_the_service_goes_on(
    token: SoftToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = Ready(token, "trial-no-thread")

    def none(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", none)
        await ready.trials.look()
        assert not ready.trials.signs
    await ready.trials.look()
    assert ready.trials.signs


async def test_keys_in_memory_are_not_tried() -> None:
    authority = found_authority("fleet.internal", NOON, (1 << 126, 1 << 125))
    issuer = Issuer(authority.issuing_ca.certificate, authority.issuing_ca.key)
    trials = SigningTrials(lambda: [issuer])
    before = trying()
    await trials.look()
    assert trials.signs
    assert trying() <= before


@pytest.mark.parametrize(
    "key",
    [generate_key(), ec.generate_private_key(ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate(), rsa_key()],
    ids=["P-256", "P-384", "Ed25519", "RSA"],
)
def test_every_kind_of_key_is_tried(key: PrivateKey) -> None:
    try_key(key)


def test_a_token_that_signs_with_another_key_does_not_sign(token: SoftToken) -> None:
    key = Pkcs11Signer(Pkcs11Uri(token.module, token.label, "trial-other"), lambda: PIN).create()
    try_key(key)
    key._public_key = generate_key().public_key()
    with pytest.raises(Refused, match="try again"):
        try_key(key)
