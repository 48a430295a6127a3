"""What OpenSSL can do and the `ssl` module does not offer: asked of OpenSSL itself, on the objects that `ssl` holds.

Theory
------
An `ssl.SSLContext` and the object inside an `ssl.SSLSocket` are C structures that begin with Python's header and hold
the pointers to OpenSSL's own. Where they stand has been the same from Python 3.7 to 3.14. The functions are looked up
in the very library that `ssl` is linked to, through the extension module's own handle.

At import both structures are looked at once, on a throw-away session: the session must hold the address of its context
where it is expected to, and OpenSSL must say of the one pointer that it belongs to the other. If anything is not as
expected, or the interpreter is not one that is known, nothing here is used: `AVAILABLE` is false, and everything works
as without it, a little slower. What it is good for: docs/decisions/0080.

Rules
-----
1. Nothing here touches who is verified or how.
2. Whoever calls has a way without it: the slow twin, which the same tests run.
3. A session's address is good as long as the session lives; who keeps one drops it with the session.
"""

from __future__ import annotations

import ctypes
import ssl
import sys
import sysconfig
from collections.abc import Callable
from typing import Any, Final

_HEADER: Final = object.__basicsize__
_POINTER: Final = ctypes.sizeof(ctypes.c_void_p)
_CONTEXT: Final = _HEADER
"""Where an `SSLContext` holds OpenSSL's."""
_SESSION: Final = _HEADER + _POINTER
"""Where the object inside an `SSLSocket` holds OpenSSL's session, behind a reference to its socket."""
_CONTEXT_OF_SESSION: Final = _HEADER + 2 * _POINTER
"""Where it holds the `SSLContext`."""
_FIRST_KNOWN, _FIRST_UNKNOWN = (3, 11), (3, 15)


def prefer(context: ssl.SSLContext, cipher_suites: tuple[str, ...]) -> bool:
    """Offer and choose TLS 1.3 *cipher_suites* in this order and no others; return False where that cannot be said.

    A server chooses by its own order, as `ssl` has its contexts do (``OP_CIPHER_SERVER_PREFERENCE``).
    """
    names = ":".join(cipher_suites)
    public: Callable[[str], None] | None = getattr(context, "set_ciphersuites", None)  # Python 3.15.
    if public is not None:
        public(names)
        return True
    return AVAILABLE and bool(_library.SSL_CTX_set_ciphersuites(_word(context, _CONTEXT), names.encode()))


def read_ahead(session: Any) -> int:
    """Let *session*, an `ssl.SSLSocket` or the object inside one, take in one system call as many bytes as are there.

    Returns where OpenSSL keeps the session, or 0 where this cannot be said and nothing has changed. By default OpenSSL
    makes two system calls for each record: for its header, and for what it says is to come. With reading ahead bytes
    may wait inside, where the kernel does not tell of them: whoever reads asks `has_pending` after each read.
    """
    inner = getattr(session, "_sslobj", session)
    if not AVAILABLE or type(inner) is not _SESSION_TYPE:
        return 0
    address = _word(inner, _SESSION)
    _library.SSL_set_read_ahead(address, 1)
    return address


def _word(holder: object, offset: int) -> int:
    return ctypes.c_void_p.from_address(id(holder) + offset).value or 0


def _open() -> tuple[ctypes.PyDLL, type] | None:
    """Return the library that `ssl` uses and the type of its sessions, if both are what they are thought to be."""
    known = sys.implementation.name == "cpython" and _FIRST_KNOWN <= sys.version_info[:2] < _FIRST_UNKNOWN
    if not known or sysconfig.get_config_var("Py_TRACE_REFS") or sysconfig.get_config_var("Py_GIL_DISABLED"):
        return None
    try:
        import _ssl

        library = ctypes.PyDLL(_ssl.__file__)  # Keeps the interpreter's lock: these calls take less than giving it up.
        for name, result, arguments in (
            ("SSL_CTX_set_ciphersuites", ctypes.c_int, [ctypes.c_void_p, ctypes.c_char_p]),
            ("SSL_get_SSL_CTX", ctypes.c_void_p, [ctypes.c_void_p]),
            ("SSL_set_read_ahead", None, [ctypes.c_void_p, ctypes.c_int]),
            ("SSL_has_pending", ctypes.c_int, [ctypes.c_void_p]),
        ):
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (ImportError, AttributeError, OSError):  # Linked statically: there is no such library to ask.
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    wrapped: Any = context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True)
    session = wrapped._sslobj  # noqa: SLF001
    if _word(session, _CONTEXT_OF_SESSION) != id(context):
        return None
    if library.SSL_get_SSL_CTX(_word(session, _SESSION)) != _word(context, _CONTEXT):
        return None
    return library, type(session)


_OPENED: Final = _open()
AVAILABLE: Final = _OPENED is not None
"""Whether OpenSSL can be asked directly here."""
_library: Any = _OPENED[0] if _OPENED is not None else None
_SESSION_TYPE: Final = _OPENED[1] if _OPENED is not None else None


def _never(address: int) -> int:
    del address
    return 0


has_pending: Final[Callable[[int], int]] = _library.SSL_has_pending if AVAILABLE else _never
"""Whether bytes wait inside the session at this address, read but not taken yet: 1 or 0."""
