"""The library of OpenSSL that `ssl` is linked to: its functions by name, and what it calls in turn.

Theory
------
The functions are looked up in the very library that `ssl` uses, through its extension module's own handle. `ctypes`
calls them, with the types that each is declared with. Where the hot path is compiled, those that run for each
connection or message are called without `ctypes`, by `provisioning.pki.direct_calls`: the same functions at the same
addresses, in a tenth of the instructions (docs/decisions/0326).

Rules
-----
1. What a function is given are numbers and bytes: an address is an int, none is 0. `ctypes` would take objects of its
   own as well, the compiled calls do not.
2. What OpenSSL calls is made by `callback` alone: whatever it raises is a refusal.
3. Nothing is declared here whose absence would matter to somebody else: whoever needs a function declares it.

Does not handle: whether the structures of `ssl` are as expected, so whether anything here may be used
(`provisioning.pki.openssl`).
"""

from __future__ import annotations

import _ssl
import contextlib
import ctypes
import importlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Final


def _built() -> Any:
    """Return `provisioning.pki.direct_calls`; None: it was not built."""
    try:
        return importlib.import_module("provisioning.pki.direct_calls")
    except ModuleNotFoundError:
        return None


RECORD: Final = 16384
"""Largest plaintext of one TLS record (RFC 8446 §5.1)."""
_direct: Final = _built()
DIRECT: Final = _direct is not None
"""Whether functions are called without `ctypes`."""
_Address: Final = ctypes.c_void_p
StatusCallback: Final = ctypes.CFUNCTYPE(ctypes.c_int, _Address, _Address)
"""The type of what OpenSSL calls when a client asks for a staple."""
StepCallback: Final = ctypes.CFUNCTYPE(None, _Address, ctypes.c_int, ctypes.c_int)
"""… at each step of a session other than data."""
HelloCallback: Final = ctypes.CFUNCTYPE(ctypes.c_int, _Address, _Address, _Address)
"""… when a ClientHello has come."""
FindCallback: Final = ctypes.CFUNCTYPE(ctypes.c_int, _Address, _Address, ctypes.c_size_t, _Address)
"""… for an external secret."""
MessageCallback: Final = ctypes.CFUNCTYPE(
    None, ctypes.c_int, ctypes.c_int, ctypes.c_int, _Address, ctypes.c_size_t, _Address, _Address
)
"""… with each message of a handshake."""
_DIRECT: Final = {StepCallback: "step", HelloCallback: "hello", FindCallback: "find", MessageCallback: "message"}
"""Those that are called without `ctypes` where that is possible, by their names there."""


class Frequent:
    """Those functions that run for each connection or message, once they are declared: those of `direct_calls`.

    Compiled code finds an attribute of such an object by its place, not by its name.
    """

    SSL_do_handshake: Callable[..., Any]
    SSL_read: Callable[..., Any]
    SSL_get_error: Callable[..., Any]
    SSL_session_reused: Callable[..., Any]
    SSL_get_session: Callable[..., Any]
    SSL_new_session_ticket: Callable[..., Any]
    SSL_get_SSL_CTX: Callable[..., Any]
    SSL_CTX_remove_session: Callable[..., Any]
    SSL_set_read_ahead: Callable[..., Any]
    SSL_has_pending: Callable[..., Any]
    SSL_ctrl: Callable[..., Any]
    SSL_get_peer_cert_chain: Callable[..., Any]
    SSL_set_shutdown: Callable[..., Any]
    SSL_shutdown: Callable[..., Any]
    SSL_set_info_callback: Callable[..., Any]
    SSL_set_msg_callback: Callable[..., Any]
    SSL_set_rfd: Callable[..., Any]
    SSL_set0_rbio: Callable[..., Any]
    SSL_get_pending_cipher: Callable[..., Any]
    EVP_PKEY_set_type: Callable[..., Any]
    EVP_PKEY_free: Callable[..., Any]
    OPENSSL_sk_pop: Callable[..., Any]
    X509_free: Callable[..., Any]
    BIO_up_ref: Callable[..., Any]
    BIO_write: Callable[..., Any]
    BIO_ctrl: Callable[..., Any]
    ERR_clear_error: Callable[..., Any]
    SSL_SESSION_set1_ticket_appdata: Callable[..., Any]
    SSL_SESSION_get0_ticket_appdata: Callable[..., Any]
    SSL_SESSION_set1_id: Callable[..., Any]
    SSL_SESSION_get0_cipher: Callable[..., Any]
    SSL_SESSION_get_time_ex: Callable[..., Any]
    SSL_SESSION_get_timeout: Callable[..., Any]
    SSL_CTX_sessions: Callable[..., Any]
    OPENSSL_LH_retrieve: Callable[..., Any]


library: Final = SimpleNamespace()
"""All functions that have been declared."""
frequent: Final = Frequent()
"""… and those that run often."""
_kept: Final[list[Any]] = []
"""What OpenSSL may call until the process ends: it knows addresses only."""


def declare(name: str, result: Any, arguments: list[Any], *, keeps_errno: bool = False) -> None:
    """Have `library` offer OpenSSL's function *name* with this signature; raise AttributeError if there is none.

    After one that *keeps_errno*, `get_errno` tells what it has left: with each call that would take `ctypes` longer.
    """
    function: Any = getattr(_WITH_ERRNO if keeps_errno else _LIBRARY, name)
    function.restype, function.argtypes = result, arguments
    direct = _direct.bind(name, ctypes.cast(function, ctypes.c_void_p).value or 0) if _direct is not None else None
    setattr(library, name, direct or function)
    with contextlib.suppress(AttributeError):  # Compiled, it has no place for others.
        setattr(frequent, name, direct or function)


def callback(kind: Any, call: Callable[..., Any], *, refusal: int | Callable[..., None] | None) -> int:
    """Return the address at which OpenSSL can call *call*, for ever; 0 if it cannot call back.

    *kind* is one of the types above. Nothing can be raised through OpenSSL, which would take for the result what
    happened to be in its place: whatever *call* raises, its first line included, the result is *refusal*. Where OpenSSL
    expects none, that is a function which refuses, given the same arguments, or None.
    """
    if _LIBRARY is None:
        return 0
    direct = _direct.callback(_DIRECT[kind], call, refusal) if _direct is not None and kind in _DIRECT else 0
    return direct or _interpreted_callback(kind, call, refusal)


def _interpreted_callback(kind: Any, call: Callable[..., Any], refusal: int | Callable[..., None] | None) -> int:
    def answer(*arguments: Any) -> Any:
        try:
            return call(*arguments)
        except BaseException:  # noqa: BLE001 - not even a KeyboardInterrupt
            return refusal(*arguments) if callable(refusal) else refusal

    try:
        made = kind(answer)
    except (MemoryError, OSError):  # This process may be forbidden to have executable memory.
        return 0
    _kept.append(made)
    return ctypes.cast(made, ctypes.c_void_p).value or 0


def address_of_bytes(place: bytearray) -> int:
    """Return the address of the bytes of *place*, which must not be resized afterwards, and which its owner keeps."""
    return ctypes.addressof((ctypes.c_char * len(place)).from_buffer(place))


def _word_at(place: int) -> int:
    return ctypes.c_void_p.from_address(place).value or 0


def _set_null(place: int) -> None:
    ctypes.c_void_p.from_address(place).value = None


def _read_record(session: int) -> bytes | int:
    size: int = library.SSL_read(session, _record_place, RECORD)
    return ctypes.string_at(_record_place, size) if size > 0 else size


def _open(*, keeps_errno: bool) -> ctypes.PyDLL | None:
    """Return the library that `ssl` uses; None: it is linked statically, and there is no such library to call."""
    try:
        return ctypes.PyDLL(_ssl.__file__, use_errno=keeps_errno)  # Keeps the GIL: shorter than releasing it.
    except (AttributeError, OSError):
        return None


_LIBRARY: Final = _open(keeps_errno=False)
_WITH_ERRNO: Final = _open(keeps_errno=True)
get_errno: Final[Callable[[], int]] = ctypes.get_errno if _direct is None else _direct.get_errno
string_at: Final[Callable[[int, int], bytes]] = ctypes.string_at if _direct is None else _direct.string_at
"""A copy of so many bytes at an address."""
word_at: Final[Callable[[int], int]] = _word_at if _direct is None else _direct.word_at
"""The pointer at an address, as a number."""
_record: Final = bytearray(RECORD)
_record_place: Final = address_of_bytes(_record)
read_record: Final[Callable[[int], bytes | int]] = _read_record if _direct is None else _direct.read_record
"""Returns the content of the next record of the session at an address; if there is none, what `SSL_read` says of it."""
set_null: Final[Callable[[int], None]] = _set_null if _direct is None else _direct.set_null
"""Makes the pointer at an address one to nothing."""
