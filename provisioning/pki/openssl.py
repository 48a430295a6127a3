"""What OpenSSL can do and the `ssl` module does not offer: calls OpenSSL directly, on the objects that `ssl` holds.

Theory
------
An `ssl.SSLContext` and the object inside an `ssl.SSLSocket` are C structures that begin with Python's header and hold
the pointers to OpenSSL's own. Their offsets have been the same from Python 3.7 to 3.15. The functions are those
of the very library that `ssl` is linked to (`provisioning.pki.openssl_library`).

At import both structures are checked once, on a throw-away session: the session must hold the address of its context
at the expected offset, and OpenSSL must confirm that one pointer belongs to the other. The library is checked as well:
a process may hold several copies of OpenSSL, and another one would take the structures of `ssl` for its own. If
anything differs, or the interpreter is not a known one, nothing here is used: `AVAILABLE` is false, and `WHY_NOT` says
why. What it is good for: docs/decisions/0080. Servers refuse to start without it, where it bounds what strangers may do
(`provisioning.pki.guards`).

Rules
-----
1. Nothing here affects who is verified or how.
2. Every caller has an alternative: the slow reference, which the same tests run.
3. A session's address is valid as long as the session lives; whoever keeps one drops it with the session.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import ssl
import sys
import sysconfig
from collections.abc import Callable
from typing import Any, Final

from provisioning.pki.openssl_library import DIRECT, declare, frequent, get_errno, library, read_record, word_at

_HEADER: Final = object.__basicsize__
_POINTER: Final = ctypes.sizeof(ctypes.c_void_p)
_CONTEXT: Final = _HEADER
"""Offset in an `SSLContext` of the pointer to OpenSSL's context."""
_SESSION: Final = _HEADER + _POINTER
"""Offset in the object inside an `SSLSocket` of the pointer to OpenSSL's session, after a reference to its socket."""
_CONTEXT_OF_SESSION: Final = _HEADER + 2 * _POINTER
"""Offset in it of the `SSLContext`."""
_GET_PEER_TMP_KEY: Final = 109
_X25519: Final = 1034
COMPLETE: Final = 0
WANTS_READ: Final = 2
WANTS_WRITE: Final = 3
"""`SSL_ERROR_NONE`, `SSL_ERROR_WANT_READ` and `SSL_ERROR_WANT_WRITE`."""
_FAILED: Final = 1
_SYSTEM_CALL_FAILED: Final = 5
_ENDED: Final = 6
"""`SSL_ERROR_SSL`, `SSL_ERROR_SYSCALL` and `SSL_ERROR_ZERO_RETURN`."""
_OF_THE_SYSTEM: Final = 0x80000000
"""Set in an error that a system call has left (`ERR_SYSTEM_FLAG`)."""
_UNEXPECTED_END: Final = "UNEXPECTED_EOF_WHILE_READING"
"""How OpenSSL calls the end of a connection, unless it is told to take it for a proper one (`resumption`)."""
_FIRST_KNOWN: Final = (3, 11)
_FIRST_UNKNOWN: Final = (3, 16)
_OLDEST: Final = (3, 0)
"""OpenSSL's version before which there are no corrections any more, and nothing was tried."""
_NOBODY: Final = 0
"""The address of a call back that there is none."""


def address_of(session: Any) -> int:
    """Return the address of OpenSSL's *session*, an `ssl.SSLSocket`, `ssl.SSLObject` or what is in one; 0: unknown."""
    inner = inner_of(session)
    return _word(inner, _SESSION) if AVAILABLE and type(inner) is _SESSION_TYPE else 0


def inner_of(session: Any) -> Any:
    """Return what holds OpenSSL's session in *session*, which may be that itself; None: it holds none any more."""
    return session if type(session) is _SESSION_TYPE else getattr(session, "_sslobj", session)


def address_of_context(context: ssl.SSLContext) -> int:
    """Return the address of OpenSSL's *context*; 0: unknown."""
    return _word(context, _CONTEXT) if AVAILABLE else 0


def prefer(context: ssl.SSLContext, cipher_suites: tuple[str, ...]) -> bool:
    """Offer and choose TLS 1.3 *cipher_suites* in this order and no others; return False if that cannot be set.

    A server chooses by its own order, as `ssl` has its contexts do (``OP_CIPHER_SERVER_PREFERENCE``).
    """
    names = ":".join(cipher_suites)
    public: Callable[[str], None] | None = getattr(context, "set_ciphersuites", None)  # Python 3.15.
    if public is not None:
        try:
            public(names)
        except ssl.SSLError:
            return False
        return True
    address = address_of_context(context)
    return bool(address and library.SSL_CTX_set_ciphersuites(address, names.encode()))


def read_on(address: int, *, ahead: bool) -> bool:
    """Let the session at *address* read *ahead* from now on, or not; return *ahead*.

    By default OpenSSL makes two system calls per record: for its header, and for its content. Reading ahead, it reads
    all available bytes in one call. Some may then wait inside OpenSSL, where the kernel does not report them: the
    reader calls `has_pending` after each read, and does not stop while there are any.
    """
    frequent.SSL_set_read_ahead(address, ahead)
    return ahead


def shake_hands(address: int) -> int:
    """Continue the handshake of the session at *address* as `ssl` would, without releasing the GIL.

    Returns `COMPLETE`, `WANTS_READ` or `WANTS_WRITE`, where `ssl` raises an exception for each wait, which with its
    message and traceback is a fortieth of the cost of a resumed handshake. Raises what `ssl` raises: `ssl.SSLError`
    with the same reason, `ssl.SSLCertVerificationError` with the same code, or `OSError`.
    """
    result: int = frequent.SSL_do_handshake(address)
    if result == 1:
        frequent.ERR_clear_error()  # A path is found beside certificates of the peer's that say nothing readable.
        return COMPLETE
    what: int = frequent.SSL_get_error(address, result)
    if what in (WANTS_READ, WANTS_WRITE):
        return what
    raise _error(address, what)


def read(address: int) -> bytes | None:
    """Return the plaintext of the next record of the session at *address*, as `ssl` would, without releasing the GIL.

    None: it has not arrived. Empty: the peer has said goodbye. Raises what `ssl` raises for all else.
    """
    content = read_record(address)
    if isinstance(content, bytes):
        return content
    what: int = frequent.SSL_get_error(address, content)
    if what in (WANTS_READ, WANTS_WRITE):
        return None
    if what == _ENDED:
        return b""
    raise _error(address, what)


def forget_errors() -> None:
    """Clear OpenSSL's error queue of this thread.

    To be called when a call on an `ssl` socket has failed, and when a handshake has succeeded. OpenSSL judges a call by
    that queue, so an error left there would be attributed to the thread's next session, whoever's it is. `ssl` clears
    it after a failure, but, from Python 3.12.3 on, not if the system has refused a write: one client that resets its
    connection would end another's. And a handshake that succeeds leaves an error if the peer has sent a certificate
    beside its path that cannot be read.
    """
    if AVAILABLE:
        frequent.ERR_clear_error()
    else:  # A handshake begins with that.
        with contextlib.suppress(ssl.SSLWantReadError):
            _never_shaken.do_handshake()


def say_goodbye(session: Any, address: int = 0) -> bool:
    """Send close_notify (RFC 8446 §6.1) to the peer of *session*, if its socket takes it at once.

    *session* is an `ssl.SSLSocket` that does not block, or the object inside one; OpenSSL's is at *address*, if that is
    known. Return whether it is, and OpenSSL has sent it; then its TLS session stays resumable.
    """
    if address:  # The usual way. Its alert is no step that anybody counts (`provisioning.pki.key_updates`).
        frequent.SSL_set_info_callback(address, _NOBODY)
        if frequent.SSL_shutdown(address) < 0:
            forget_errors()
            return False
        return True
    # Not by `unwrap`, which releases the object inside: its address is still in use.
    inner = inner_of(session)
    if inner is None:
        return False
    if address := address_of(inner):  # `ssl` asks for the peer's as well: another read, and an exception.
        if frequent.SSL_shutdown(address) < 0:
            forget_errors()
        return False
    try:
        inner.shutdown()
    except OSError:  # As a rule ours is sent, and the peer's has not arrived: `ssl.SSLWantReadError`.
        forget_errors()
    return False


# Errors are made in functions of their own: one in a local variable of the function that raises it keeps itself alive,
# with all frames up to where it is caught and the session in them, 40 KB, until the garbage collector finds the cycle.


def _ended(what: int, reason: str | None = None) -> ssl.SSLError:
    kind, number = (ssl.SSLZeroReturnError, what) if what == _ENDED else (ssl.SSLEOFError, ssl.SSL_ERROR_EOF)
    ended: ssl.SSLError = kind(number, "the peer has closed the connection")
    ended.reason = reason  # type: ignore[assignment] # As in `ssl`.
    return ended


def _error(address: int, what: int) -> OSError:
    number, error = get_errno(), library.ERR_peek_last_error()
    frequent.ERR_clear_error()  # Errors left there would be attributed to the next session.
    if what == _FAILED and not error & _OF_THE_SYSTEM:
        return _failure(address, error)
    if what == _FAILED:  # `ssl` from Python 3.12.3 on passes on what the system has said of a write.
        number = error & ~_OF_THE_SYSTEM
        return OSError(number, os.strerror(number))
    if what == _SYSTEM_CALL_FAILED and number:
        return OSError(number, os.strerror(number))
    return _ended(what)


def _failure(address: int, error: int) -> ssl.SSLError:
    words = (library.ERR_reason_error_string(error) or b"unknown error").decode()
    # `ssl` names an error as in OpenSSL's header, where alerts are still those of SSL 3 (no more in 4.0).
    reason = words.upper().replace(" ", "_").removeprefix("SSL/")
    if reason.startswith("TLS_ALERT_"):
        reason = f"SSLV3_{reason.removeprefix('TLS_')}"
    if reason == _UNEXPECTED_END:
        return _ended(_FAILED, reason)
    if reason != "CERTIFICATE_VERIFY_FAILED":
        failed = ssl.SSLError(_FAILED, words)
        failed.reason = reason
        return failed
    refused = ssl.SSLCertVerificationError(_FAILED, words)
    refused.reason = reason
    refused.verify_code = library.SSL_get_verify_result(address)
    refused.verify_message = library.X509_verify_cert_error_string(refused.verify_code).decode()
    return refused


def forget_handshake(address: int, *, resumed: bool) -> None:
    """Free what the session at *address*, whose handshake is complete, never needs again: 11 KB.

    That is the client's public key of the key exchange, which with ML-KEM is expanded to 7 KB, and the issuing CAs'
    certificates that the client sent. What was verified stays: the client's certificate and the path (`verified_path`).
    """
    if frequent.SSL_ctrl(address, _GET_PEER_TMP_KEY, 0, _key_place):
        key = word_at(_key_place)
        frequent.EVP_PKEY_set_type(key, _X25519)  # Empties it: leaves a key of this type without a value.
        frequent.EVP_PKEY_free(key)
    if resumed:
        return  # It came with a ticket, and sent no chain.
    chain = frequent.SSL_get_peer_cert_chain(address)
    while sent := frequent.OPENSSL_sk_pop(chain):
        frequent.X509_free(sent)


def encoded(certificate: int | None) -> bytes:
    """Return OpenSSL's *certificate* at this address in DER; empty if it is none."""
    size = library.i2d_X509(certificate, None) if certificate else 0
    if size <= 0:
        return b""
    buffer = ctypes.create_string_buffer(size)
    library.i2d_X509(certificate, ctypes.byref(ctypes.c_void_p(ctypes.addressof(buffer))))  # It advances the pointer.
    return buffer.raw


def _word(holder: object, offset: int) -> int:
    return word_at(id(holder) + offset)


_FUNCTIONS: Final[tuple[tuple[str, Any, list[Any]], ...]] = (
    ("OpenSSL_version", ctypes.c_char_p, [ctypes.c_int]),
    ("SSL_CTX_get_ssl_method", ctypes.c_void_p, [ctypes.c_void_p]),
    ("TLS_server_method", ctypes.c_void_p, []),
    ("SSL_CTX_set_ciphersuites", ctypes.c_int, [ctypes.c_void_p, ctypes.c_char_p]),
    ("SSL_get_SSL_CTX", ctypes.c_void_p, [ctypes.c_void_p]),
    ("SSL_get_error", ctypes.c_int, [ctypes.c_void_p, ctypes.c_int]),
    ("ERR_peek_last_error", ctypes.c_ulong, []),
    ("ERR_clear_error", None, []),
    ("ERR_reason_error_string", ctypes.c_char_p, [ctypes.c_ulong]),
    ("SSL_get_verify_result", ctypes.c_long, [ctypes.c_void_p]),
    ("X509_verify_cert_error_string", ctypes.c_char_p, [ctypes.c_long]),
    ("SSL_set_read_ahead", None, [ctypes.c_void_p, ctypes.c_int]),
    ("SSL_has_pending", ctypes.c_int, [ctypes.c_void_p]),
    ("SSL_CTX_ctrl", ctypes.c_long, [ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_void_p]),
    ("SSL_get_session", ctypes.c_void_p, [ctypes.c_void_p]),
    ("SSL_get_pending_cipher", ctypes.c_void_p, [ctypes.c_void_p]),
    ("SSL_session_reused", ctypes.c_int, [ctypes.c_void_p]),
    ("SSL_set_session_id_context", ctypes.c_int, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint]),
    ("SSL_new_session_ticket", ctypes.c_int, [ctypes.c_void_p]),
    ("SSL_CTX_remove_session", ctypes.c_int, [ctypes.c_void_p, ctypes.c_void_p]),
    ("SSL_CTX_flush_sessions", None, [ctypes.c_void_p, ctypes.c_long]),
    ("SSL_ctrl", ctypes.c_long, [ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_void_p]),
    ("SSL_get_peer_cert_chain", ctypes.c_void_p, [ctypes.c_void_p]),
    ("SSL_set_shutdown", None, [ctypes.c_void_p, ctypes.c_int]),
    ("SSL_shutdown", ctypes.c_int, [ctypes.c_void_p]),
    ("SSL_CTX_get0_certificate", ctypes.c_void_p, [ctypes.c_void_p]),
    ("SSL_get0_peer_certificate", ctypes.c_void_p, [ctypes.c_void_p]),
    ("i2d_X509", ctypes.c_int, [ctypes.c_void_p, ctypes.c_void_p]),
    ("SSL_CTX_callback_ctrl", ctypes.c_long, [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]),
    ("SSL_set_info_callback", None, [ctypes.c_void_p, ctypes.c_void_p]),
    ("CRYPTO_memdup", ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_int]),
    ("EVP_PKEY_set_type", ctypes.c_int, [ctypes.c_void_p, ctypes.c_int]),
    ("EVP_PKEY_free", None, [ctypes.c_void_p]),
    ("OPENSSL_sk_pop", ctypes.c_void_p, [ctypes.c_void_p]),
    ("X509_free", None, [ctypes.c_void_p]),
    ("SSL_set0_rbio", None, [ctypes.c_void_p, ctypes.c_void_p]),
    ("SSL_set_rfd", ctypes.c_int, [ctypes.c_void_p, ctypes.c_int]),
    ("BIO_s_mem", ctypes.c_void_p, []),
    ("BIO_new", ctypes.c_void_p, [ctypes.c_void_p]),
    ("BIO_up_ref", ctypes.c_int, [ctypes.c_void_p]),
    ("BIO_write", ctypes.c_int, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]),
    ("BIO_ctrl", ctypes.c_long, [ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_void_p]),
)
"""What is called here: name, result, arguments."""


def _open() -> tuple[type | None, str]:
    """Declare the functions used here; return the type of what holds a session, if all is as expected, or why not."""
    known = sys.implementation.name == "cpython" and _FIRST_KNOWN <= sys.version_info[:2] < _FIRST_UNKNOWN
    if not known or sysconfig.get_config_var("Py_TRACE_REFS") or sysconfig.get_config_var("Py_GIL_DISABLED"):
        return None, "where its objects hold those of OpenSSL is only known of CPython 3.11 to 3.15, with its GIL"
    if ssl.OPENSSL_VERSION_INFO < _OLDEST:
        return None, "it has not got OpenSSL 3.0 or newer"
    try:
        for name, result, arguments in _FUNCTIONS:
            declare(name, result, arguments)
        declare("SSL_do_handshake", ctypes.c_int, [ctypes.c_void_p], keeps_errno=True)
        declare("SSL_read", ctypes.c_int, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int], keeps_errno=True)
    except AttributeError as error:
        lacking = str(error).rpartition(": ")[2]  # Without the path: "undefined symbol: …"
        return None, f"its OpenSSL cannot be called: it is linked statically, or has no {lacking}"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    wrapped: Any = context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True)
    session = wrapped._sslobj  # noqa: SLF001 - what the C functions take
    if _word(session, _CONTEXT_OF_SESSION) != id(context):
        return None, "its objects do not hold those of OpenSSL where they are expected"
    if not is_of_ssl(library, _word(context, _CONTEXT)):
        return None, "another copy of OpenSSL is found than its ssl module uses"
    if frequent.SSL_get_SSL_CTX(_word(session, _SESSION)) != _word(context, _CONTEXT):
        return None, "its objects do not hold those of OpenSSL where they are expected"
    return type(session), ""


def is_of_ssl(its: Any, context: int) -> bool:
    """Whether *its* functions are those with which `ssl` has made what is at *context*, for a server.

    Each copy of OpenSSL has a method for servers of its own, and a queue of errors: of libssl, and of libcrypto.
    """
    if its.OpenSSL_version(0) != ssl.OPENSSL_VERSION.encode():
        return False
    if its.SSL_CTX_get_ssl_method(context) != its.TLS_server_method():
        return False
    its.SSL_CTX_set_ciphersuites(context, b"TLS_NO_SUCH_SUITE")
    noted: bool = its.ERR_peek_last_error() != 0
    its.ERR_clear_error()
    return noted


_opened: Final = _open()
_SESSION_TYPE: Final = _opened[0]
WHY_NOT = _opened[1]
AVAILABLE = _SESSION_TYPE is not None
"""Whether OpenSSL can be called directly here. (Not `Final`: tests take it away, of compiled code too.)"""
READS: Final = AVAILABLE and DIRECT
"""Whether `read` costs less than the method of `ssl`: not through `ctypes`."""
_key: Final = ctypes.c_void_p()
_key_place: Final = ctypes.addressof(_key)
"""Where OpenSSL puts a key temporarily: one place is enough, because nothing else runs in between."""
_never_shaken: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).wrap_bio(
    ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True
)
"""A session that waits for ever for its client's first message."""


def _never(address: int) -> int:
    del address
    return 0


has_pending: Final[Callable[[int], int]] = frequent.SSL_has_pending if AVAILABLE else _never
"""Whether bytes wait inside the session at this address, read but not consumed yet: 1 or 0."""
