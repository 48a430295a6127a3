"""A token that refuses, errs, hangs or is full: what is said, what is handed out, and what it costs others."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pkcs11
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from pkcs11 import Attribute, KeyType, ObjectClass
from pkcs11.util.ec import encode_named_curve_parameters
from structlog.testing import capture_logs

from provisioning.errors import Refused
from provisioning.signers import pkcs11_module, token_key
from provisioning.signers.pkcs11 import _PROTECTION, Pkcs11Signer
from provisioning.signers.pkcs11_calls import TokenCalls, TokenHangs
from provisioning.signers.pkcs11_module import TokenModule, module_at
from provisioning.signers.pkcs11_uri import Pkcs11Uri
from provisioning.signers.signer import SignerError
from provisioning.signers.token_key import TokenKey
from tests.support.broker_process import wait_until
from tests.support.softhsm import PIN, FaultyModule, SoftToken

ALGORITHM = ec.ECDSA(hashes.SHA256())


def in_token(token: SoftToken, label: str, pin: Callable[[], str] = lambda: PIN) -> Pkcs11Signer:
    return Pkcs11Signer(Pkcs11Uri(token.module, token.label, label), pin)


@pytest.fixture
def module(token: SoftToken) -> TokenModule:
    """The module of which no session is open, and that is not begun again: others would lose theirs."""
    begun = module_at(token.module)
    begun._begun_at = -math.inf
    assert begun.begin_again()
    begun._refused.clear()
    return begun


def signs(key: TokenKey) -> bool:
    try:
        signature = key.sign(b"words", ALGORITHM)
    except Refused:
        return False
    key.public_key().verify(signature, b"words", ALGORITHM)
    return True


@pytest.mark.parametrize(
    ("function", "says", "words"),
    [
        ("C_Login", "0xa4", "the PIN of token 'fleet' is locked, .*: unlock it with the token's own tool"),
        ("C_GetTokenInfo", "0x40000", "the PIN of token 'fleet' is locked, .*: unlock it with the token's own tool"),
        (
            "C_GetTokenInfo",
            "0x20000",
            "one more wrong PIN would lock token 'fleet', so none is tried: log in once with the token",
        ),
        ("C_Login", "0xa3", "the PIN of token 'fleet' has expired: set a new one"),
        ("C_Login", "0x102", "token 'fleet' has no PIN yet: set one"),
        ("C_OpenSession", "0xb1", "no session left for this service: end another program that uses it, or raise"),
        ("C_OpenSession", "0xe0", "token 'fleet' is not there, or does not respond .*check that it is plugged in"),
        ("C_OpenSession", "0x32", "token 'fleet' is not there, or does not respond .*check that it is plugged in"),
    ],
)
@pytest.mark.usefixtures("module")
def test_what_a_token_refuses_is_said_with_what_to_do(
    token: SoftToken, faulty: FaultyModule, function: str, says: str, words: str
) -> None:
    signer = in_token(token, f"said-{function}-{says}")
    faulty.tell(function, says)
    with pytest.raises(SignerError, match=words):
        signer.open()


def test_the_last_try_that_a_token_grants_is_not_taken(
    token: SoftToken, faulty: FaultyModule, module: TokenModule
) -> None:
    key = in_token(token, "last-try").create()
    module._begun_at = -math.inf
    assert module.begin_again()
    faulty.tell("C_GetTokenInfo", "0x20000")
    faulty.tell("C_Login", "0x5")  # What whoever tries it is told.
    with pytest.raises(SignerError, match="one more wrong PIN would lock"):
        in_token(token, "last-try").open()
    faulty.mend_all()  # Somebody has logged in with the right one.
    assert signs(key)


@pytest.mark.parametrize(("function", "says"), [("C_OpenSession", "0xb1"), ("C_Login", "0xa4"), ("C_Login", "0xa3")])
def test_what_a_new_beginning_cannot_help_ends_nobody_s_session(
    token: SoftToken, faulty: FaultyModule, module: TokenModule, function: str, says: str
) -> None:
    beside = in_token(token, f"beside-{function}-{says}").create()
    used = beside._connected
    module._begun_at = -math.inf  # It might be begun again.
    module.log_out(token.label)
    faulty.tell(function, says)
    with pytest.raises(SignerError):
        in_token(token, "another").open()
    faulty.mend(function)
    module._refused.clear()
    assert signs(beside)
    assert beside._connected is not None
    assert used is not None
    assert beside._connected.generation == used.generation


def test_a_token_that_is_away_is_looked_for_in_silence(token: SoftToken, module: TokenModule) -> None:
    """A service looks every few seconds, also for the one of a CA that was revoked when its token was lost."""
    module._begun_at = -math.inf  # It may be begun again.
    generation = module._generation
    with capture_logs() as logs, pytest.raises(SignerError, match="there is no token 'lost'"):
        Pkcs11Signer(Pkcs11Uri(token.module, "lost", "issuing-2"), lambda: PIN).open()
    assert module._generation > generation, "the module was begun again"
    assert logs == []


def test_a_pin_that_was_locked_is_tried_again_by_and_by(
    token: SoftToken, faulty: FaultyModule, module: TokenModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = in_token(token, "unlocked").create()
    monkeypatch.setattr(pkcs11_module, "_LOCKED_SECONDS", 60.0)
    module.log_out(token.label)
    faulty.tell("C_Login", "0xa4")
    with pytest.raises(SignerError, match="is locked"):
        in_token(token, "unlocked").open()
    faulty.mend("C_Login")
    with pytest.raises(SignerError, match="is locked"):
        in_token(token, "unlocked").open()
    pin, _, why = module._refused[token.label]
    module._refused[token.label] = pin, time.monotonic(), why
    assert in_token(token, "unlocked").open().public_key() == key.public_key()


def test_no_session_stays_open_for_what_has_failed(token: SoftToken, faulty: FaultyModule, module: TokenModule) -> None:
    key = in_token(token, "sessions").create()
    discarded = in_token(token, "sessions-discarded").create()
    module._begun_at = time.monotonic()
    before = faulty.sessions
    in_token(token, "sessions-discarded").discard()
    for _ in range(3):
        with pytest.raises(SignerError, match="there is no key"):
            in_token(token, "sessions-absent").open()
    for _ in range(3):
        with pytest.raises(SignerError, match="exists already"):
            in_token(token, "sessions").create()
    faulty.tell("C_Sign", "0x30")
    assert [signs(key) for _ in range(3)] == [False] * 3
    assert faulty.sessions == before - 1, "the key's own is closed"
    faulty.mend("C_Sign")
    assert signs(key)
    assert faulty.sessions == before
    assert not signs(discarded)


@pytest.mark.usefixtures("module")
def test_a_key_that_nobody_has_any_more_gives_its_session_back(token: SoftToken, faulty: FaultyModule) -> None:
    """A root's key is opened for each of its lists, and one that belongs to another certificate every few seconds."""
    signer = in_token(token, "let-go")
    signer.create()
    assert signs(in_token(token, "let-go-not").create())
    before = faulty.sessions
    for _ in range(3):
        assert signs(signer.open())
    wait_until(lambda: faulty.sessions <= before, "the sessions to be closed")


@pytest.mark.usefixtures("module")
def test_a_key_that_fails_puts_no_other_one_out(token: SoftToken, faulty: FaultyModule) -> None:
    first, second = (in_token(token, f"company-{each}").create() for each in (1, 2))
    used = second._connected
    faulty.tell("C_Sign", "0x30")
    assert not signs(first)
    faulty.mend("C_Sign")
    assert signs(second)
    assert second._connected is used


def test_a_token_that_has_forgotten_who_is_logged_in_is_told_again(token: SoftToken, module: TokenModule) -> None:
    key = in_token(token, "forgotten").create()
    module._begun_at = time.monotonic()  # It is not begun again.
    module._logged_in[token.label].close()  # Which is C_Logout for the whole process, as a token's reset would be.
    assert signs(key)


@pytest.mark.usefixtures("module")
def test_a_wrong_signature_is_never_handed_out(token: SoftToken, faulty: FaultyModule) -> None:
    key = in_token(token, "errs").create()
    faulty.tell("C_Sign", "garble")
    assert not signs(key)
    faulty.mend("C_Sign")
    assert signs(key)


@pytest.mark.usefixtures("module")
def test_halves_that_do_not_belong_together_sign_nothing(token: SoftToken) -> None:
    mine, other = in_token(token, "halves"), in_token(token, "halves-other")
    key = mine.create()
    other.create()
    with mine._session() as (session, _):
        for label in ("halves", "halves-other"):
            session.get_key(object_class=ObjectClass.PRIVATE_KEY, label=label)[Attribute.LABEL] = f"{label}-moved"
        moved = session.get_key(object_class=ObjectClass.PRIVATE_KEY, label="halves-other-moved")
        moved[Attribute.LABEL] = "halves"
        session.close()
    key._connected = None
    assert not signs(key)


@pytest.mark.usefixtures("module")
def test_who_waits_for_a_token_that_hangs_is_refused_in_time_and_the_next_one_at_once(
    token: SoftToken, faulty: FaultyModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = in_token(token, "hangs").create()
    beside = in_token(token, "hangs-not").create()
    monkeypatch.setattr(token_key, "_SIGN_SECONDS", 0.2)
    faulty.tell("C_Sign", "hang")
    assert not signs(key)
    monkeypatch.setattr(token_key, "_SIGN_SECONDS", 3600.0)  # Who waited now would be missed.
    assert not signs(key)
    with pytest.raises(SignerError, match=r"has not answered an earlier .*: check that token 'fleet' can be reached"):
        in_token(token, "hangs").open()
    faulty.mend("C_Sign")
    wait_until(lambda: signs(key), "the token to answer")
    assert signs(beside)


def test_a_module_that_is_begun_again_is_begun_by_nobody_else_meanwhile(
    token: SoftToken, faulty: FaultyModule, module: TokenModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = in_token(token, "begun-once").create()
    module._begun_at = -math.inf
    begun: list[bool] = []
    faulty.tell("C_Initialize", "hang")
    beginning = threading.Thread(target=lambda: begun.append(module.begin_again()))
    before = faulty.asked_times
    beginning.start()
    try:
        wait_until(lambda: faulty.asked_times > before, "C_Initialize")
        monkeypatch.setattr(token_key, "_SIGN_SECONDS", 0.2)
        assert not signs(key), "it is refused, and asks for nothing that hangs"
    finally:
        faulty.mend("C_Initialize")
        beginning.join()
    assert begun == [True]
    monkeypatch.setattr(token_key, "_SIGN_SECONDS", 60.0)
    wait_until(lambda: signs(key), "the token to answer")
    assert faulty.begun == 1


def test_what_is_asked_of_a_key_has_an_end_and_its_own_error() -> None:
    calls = TokenCalls("token-test", lambda: None)
    assert calls.do(lambda: 5, 60) == 5

    def late() -> None:
        raise TimeoutError("the module's own")

    with pytest.raises(TimeoutError, match="the module's own"):
        calls.do(late, 60)
    with pytest.raises(TokenHangs):
        calls.do(lambda: time.sleep(0.05), 0.0)


@pytest.mark.usefixtures("module")
def test_refusals_are_not_one_object_that_grows(token: SoftToken, faulty: FaultyModule) -> None:
    key = in_token(token, "grows").create()
    faulty.tell("C_Sign", "0x30")
    refused = []
    for _ in range(2):
        with pytest.raises(Refused) as caught:
            key.sign(b"words", ALGORITHM)
        refused.append(caught.value)
    assert refused[0] is not refused[1], "its traceback would keep the frames of every request"


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("P-521", "is on another curve: use ECDSA P-256 or P-384"),
        ("RSA", "is not an elliptic-curve key: use ECDSA P-256 or P-384"),
        ("half", "there is no public key 'kind-half' in token 'fleet': store it with the private key"),
    ],
)
def test_a_key_of_another_kind_is_named(token: SoftToken, kind: str, words: str) -> None:
    label = f"kind-{kind}"
    signer = in_token(token, label)
    with signer._session() as (session, _):
        private = {**_PROTECTION, Attribute.SIGN: True}
        if kind == "RSA":
            session.generate_keypair(KeyType.RSA, 2048, store=True, label=label, private_template=private)
        else:
            curve = encode_named_curve_parameters("secp521r1" if kind == "P-521" else "secp256r1")
            parameters = session.create_domain_parameters(KeyType.EC, {Attribute.EC_PARAMS: curve}, local=True)
            public, _ = parameters.generate_keypair(store=True, label=label, private_template=private)
            if kind == "half":
                public.destroy()
        session.close()
    with pytest.raises(SignerError, match=words):
        signer.open()


def test_a_module_that_cannot_be_loaded_is_named(token: SoftToken, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.so"
    library = bytearray(token.module.read_bytes())
    library[18:20] = (183 if library[18] == 62 else 62).to_bytes(2, "little")  # e_machine: AArch64, x86-64.
    foreign.write_bytes(library)
    (tmp_path / "text.so").write_text("no module")
    for path in (foreign, tmp_path / "text.so", tmp_path):
        with pytest.raises(SignerError, match=r"is no PKCS #11 module that this machine can load \(.*\): install"):
            Pkcs11Signer(Pkcs11Uri(path, "fleet", "x"), lambda: PIN).open()
    assert not any(str(tmp_path) in each for each in pkcs11._loaded)
