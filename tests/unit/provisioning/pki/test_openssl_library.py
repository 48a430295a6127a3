"""OpenSSL's functions by name, and what it may call."""

from __future__ import annotations

import ctypes

import pytest

from provisioning.pki import openssl
from provisioning.pki.openssl_library import (
    StatusCallback,
    StepCallback,
    address_of_bytes,
    callback,
    declare,
    library,
    set_null,
    string_at,
    word_at,
)

pytestmark = pytest.mark.skipif(not openssl.AVAILABLE, reason="OpenSSL cannot be called directly here")


@pytest.mark.parametrize("error", [ValueError, MemoryError, KeyboardInterrupt, SystemExit])
def test_whatever_a_callback_raises_openssl_hears_a_refusal(error: type[BaseException]) -> None:
    def fail(_session: int, _argument: int) -> int:
        raise error

    for refusal in (0, 1, 3):
        made = callback(StatusCallback, fail, refusal=refusal)
        assert StatusCallback(made)(0, 0) == refusal
    ignored = callback(StepCallback, lambda *_: fail(0, 0), refusal=None)
    assert StepCallback(ignored)(0, 0, 0) is None
    refused: list[tuple[int | None, ...]] = []
    acting = callback(StepCallback, lambda *_: fail(0, 0), refusal=lambda *given: refused.append(given))
    assert StepCallback(acting)(0, 1, 2) is None
    assert refused == [(None, 1, 2)]


def test_a_callback_of_other_arguments_is_a_refusal_too() -> None:
    made = callback(StatusCallback, lambda: 0, refusal=3)
    assert StatusCallback(made)(0, 0) == 3


def test_what_openssl_may_call_stays() -> None:
    seen: list[tuple[int, ...]] = []

    def see(*given: int) -> int:
        seen.append(given)
        return 7

    made = callback(StatusCallback, see, refusal=0)
    assert [StatusCallback(made)(address, 2) for address in (1, 2**47)] == [7, 7]
    assert seen == [(1, 2), (2**47, 2)]


def test_a_function_that_openssl_lacks_is_not_there() -> None:
    with pytest.raises(AttributeError):
        declare("SSL_do_what_i_mean", ctypes.c_int, [])
    assert not hasattr(library, "SSL_do_what_i_mean")


def test_bytes_at_an_address() -> None:
    place = bytearray(b"a\0b" + bytes(8))
    assert string_at(address_of_bytes(place), 3) == b"a\0b"
    assert string_at(address_of_bytes(place), 0) == b""
    pointer = ctypes.c_void_p(2**63 + 7)
    assert word_at(ctypes.addressof(pointer)) == 2**63 + 7
    set_null(ctypes.addressof(pointer))
    assert pointer.value is None
    assert word_at(ctypes.addressof(pointer)) == 0
