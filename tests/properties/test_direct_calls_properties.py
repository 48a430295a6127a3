"""Property: what calls OpenSSL without `ctypes`, where that was built, does what `ctypes` does with the same function.

Where it was not built, both are of `ctypes`: `make test-compiled` runs this again.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning.pki import key_shown, openssl_library, resumed_exchange
from provisioning.pki.openssl_library import address_of_bytes, library, string_at
from tests.support.asking_client import Asking, served
from tests.support.examples import examples

pytestmark = pytest.mark.skipif(
    not (key_shown.CAN_NOTE and resumed_exchange.CAN_LIMIT), reason="an OpenSSL that lacks some of the functions"
)
_PEEK, _RESET, _PENDING = 3, 1, 10
_GET_PEER_TMP_KEY = 109


class Slow:
    """OpenSSL's functions as `ctypes` calls them, with the signatures that were declared."""

    def __getattr__(self, name: str) -> Any:
        keeps_errno = name == "SSL_do_handshake"
        return getattr(openssl_library._WITH_ERRNO if keeps_errno else openssl_library._LIBRARY, name)


@dataclass
class Side:
    """Everything that a sequence of calls works on, with the functions that it is to call."""

    functions: Any
    asking: Asking = field(default_factory=lambda: Asking(served()))
    content: bytearray = field(default_factory=lambda: bytearray(range(256)))

    def __post_init__(self) -> None:
        self.asking.shake_hands()
        self.session = self.asking.server_address
        self.bio = library.BIO_new(library.BIO_s_mem())
        self.made = library.SSL_SESSION_new()
        self.known = {self.session: "session", self.bio: "bio", self.made: "made"}

    def told(self, result: Any) -> Any:
        """Return a *result* as it compares with the other side's: of addresses, which they are is compared."""
        return self.known.setdefault(result, f"address {len(self.known)}") if result and result > 2**20 else result or 0

    def close(self) -> None:
        assert openssl_library._LIBRARY is not None
        library.SSL_set_info_callback(self.session, 0)
        library.BIO_ctrl(self.bio, _RESET, 0, 0)
        openssl_library._LIBRARY.BIO_free(ctypes.c_void_p(self.bio))
        openssl_library._LIBRARY.SSL_SESSION_free(ctypes.c_void_p(self.made))


def noted(side: Side, session: int) -> bytes:
    held, size = ctypes.c_void_p(), ctypes.c_size_t()
    side.functions.SSL_SESSION_get0_ticket_appdata(session, ctypes.addressof(held), ctypes.addressof(size))
    return string_at(held.value, size.value) if held.value else b""


def key_is_kept(side: Side) -> bool:
    held = ctypes.c_void_p()
    found = side.functions.SSL_ctrl(side.session, _GET_PEER_TMP_KEY, 0, ctypes.addressof(held))
    if found:
        assert side.functions.EVP_PKEY_set_type(held.value, 1034) == 1
        side.functions.EVP_PKEY_free(held.value)
    return bool(found)


def chain_is_emptied(side: Side) -> int:
    chain, count = side.functions.SSL_get_peer_cert_chain(side.session), 0
    while chain and (sent := side.functions.OPENSSL_sk_pop(chain)):
        side.functions.X509_free(sent)
        count += 1
    return count


def step_is_told(side: Side) -> list[tuple[int, int]]:
    """Return what OpenSSL says of the alert at a session's end."""
    steps: list[tuple[int, int]] = []
    kind = openssl_library.StepCallback
    called = kind(lambda _session, where, value: steps.append((where, value)))
    side.functions.SSL_set_info_callback(side.session, ctypes.cast(called, ctypes.c_void_p).value)
    side.functions.SSL_shutdown(side.session)
    side.functions.SSL_set_info_callback(side.session, 0)
    return steps


Call = Callable[[Side], Any]
NUMBERS = st.integers(0, 255)
CALLS: st.SearchStrategy[Call] = st.one_of(
    st.sampled_from(
        [
            lambda side: side.functions.SSL_session_reused(side.session),
            lambda side: side.functions.SSL_has_pending(side.session),
            lambda side: side.told(side.functions.SSL_get_session(side.session)),
            lambda side: side.told(side.functions.SSL_get_SSL_CTX(side.session)),
            lambda side: side.told(side.functions.SSL_get_pending_cipher(side.session)),
            lambda side: side.functions.SSL_new_session_ticket(side.session),
            lambda side: side.functions.SSL_do_handshake(side.session),
            lambda side: bool(side.functions.SSL_CTX_sessions(side.functions.SSL_get_SSL_CTX(side.session))),
            lambda side: side.told(
                side.functions.OPENSSL_LH_retrieve(
                    side.functions.SSL_CTX_sessions(side.functions.SSL_get_SSL_CTX(side.session)), side.made
                )
            ),
            lambda side: side.functions.SSL_CTX_remove_session(
                side.functions.SSL_get_SSL_CTX(side.session), side.functions.SSL_get_session(side.session)
            ),
            lambda side: side.functions.SSL_SESSION_get_timeout(side.made),
            lambda side: side.functions.SSL_SESSION_get_time_ex(side.made) > 10**9,
            lambda side: side.told(side.functions.SSL_SESSION_get0_cipher(side.made)),
            lambda side: side.functions.ERR_clear_error(),
            lambda side: side.functions.BIO_ctrl(side.bio, _PENDING, 0, 0),
            lambda side: side.functions.BIO_ctrl(side.bio, _RESET, 0, 0),
            lambda side: noted(side, side.made),
            key_is_kept,
            chain_is_emptied,
            step_is_told,
        ]
    ),
    NUMBERS.map(lambda n: lambda side: side.functions.SSL_get_error(side.session, n - 128)),
    NUMBERS.map(lambda n: lambda side: side.functions.BIO_write(side.bio, address_of_bytes(side.content), n)),
    NUMBERS.map(lambda n: lambda side: side.functions.SSL_set_read_ahead(side.session, n % 2)),
    NUMBERS.map(lambda n: lambda side: side.functions.SSL_set_shutdown(side.session, n % 4)),
    st.binary(max_size=64).map(
        lambda data: lambda side: side.functions.SSL_SESSION_set1_ticket_appdata(side.made, data, len(data))
    ),
    st.binary(max_size=40).map(
        lambda name: lambda side: side.functions.SSL_SESSION_set1_id(side.made, name, len(name))
    ),
)


@examples(40)
@given(st.lists(CALLS, max_size=40))
def test_the_same_calls_have_the_same_results(calls: list[Call]) -> None:
    fast, slow = Side(library), Side(Slow())
    try:
        for call in calls:
            assert call(fast) == call(slow)
    finally:
        fast.close()
        slow.close()


@pytest.mark.skipif(not openssl_library.DIRECT, reason="`ctypes` believes what it is told")
def test_what_is_not_there_is_not_read() -> None:
    made = library.SSL_SESSION_new()
    for function in (library.SSL_SESSION_set1_ticket_appdata, library.SSL_SESSION_set1_id):
        assert function(made, b"four", 4) == 1
        for octets, size in ((None, 0), (None, 4), (bytearray(4), 4), ("four", 4), (b"four", 5), (b"", 1)):
            with pytest.raises((TypeError, ValueError)):
                function(made, octets, size)
        for numbers in ((None, b"four", 4), (made, b"four", -1), (made, b"four", None), (-1, b"four", 4)):
            with pytest.raises((TypeError, OverflowError)):
                function(*numbers)
    assert openssl_library._LIBRARY is not None
    openssl_library._LIBRARY.SSL_SESSION_free(ctypes.c_void_p(made))
    nowhere: list[tuple[Any, Any]] = [(0, 16), (None, 16), (2**64, 16), (made, -1), (made, None)]
    for place, size in nowhere:
        with pytest.raises((TypeError, ValueError, OverflowError)):
            string_at(place, size)
        for look in (openssl_library.set_null, openssl_library.word_at):
            with pytest.raises((TypeError, ValueError, OverflowError)):
                look(0 if place == made else place)
    assert string_at(0, 0) == b""
    assert openssl_library._direct.bind("SSL_read", 0) is None


CALLED = """
from provisioning.pki.openssl_library import FindCallback, HelloCallback, MessageCallback, StepCallback, callback

FAR = 2**63 + 5
GIVEN = {
    HelloCallback: (1, 2, 0),
    FindCallback: (FAR, 2, 3, 4),
    MessageCallback: (0, 772, -1, FAR, 5, 6, 0),
    StepCallback: (FAR, -1, 2),
}


def fails(*_given):
    raise error


for kind, given in GIVEN.items():
    heard = []
    answers = (1, 0) if kind in (HelloCallback, FindCallback) else (None, None)
    for _ in range(3):  # As many as there is one of C for, and more.
        made = callback(kind, lambda *given: heard.append(given) or answers[0], refusal=answers[1])
        assert kind(made)(*given) == answers[0]
    assert [tuple(each or 0 for each in given) for given in heard] == [given] * 3, heard
print("heard")
"""
FAILING = """
for error in (ValueError, MemoryError, KeyboardInterrupt, SystemExit):
    for kind, given in GIVEN.items():
        refused = []
        refusal = 0 if kind in (HelloCallback, FindCallback) else lambda *given: refused.append(given)
        made = callback(kind, fails, refusal=refusal if kind is not StepCallback else None)
        assert not kind(made)(*given)
        assert bool(refused) == (kind is MessageCallback)
print("refused")
"""


@pytest.mark.parametrize(
    ("script", "said"), [(CALLED, "heard"), (CALLED.partition("for kind")[0] + FAILING, "refused")]
)
def test_who_is_called_hears_the_same_and_never_raises(script: str, said: str) -> None:
    """In a process where nobody else is called, for there is one function of C for each."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == (said, "")
