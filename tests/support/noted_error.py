"""What Python 3.12.3 and later leave in OpenSSL's error queue when the system refuses a write, on every Python.

`leave_error` does what such a write does; `Bystander` is an unrelated session of the same thread.
"""

from __future__ import annotations

import ctypes
import errno
import ssl

_LIBRARY_SYSTEM = 2


def leave_error() -> None:
    """Record, as OpenSSL does, that a system call has failed with EPIPE."""
    import _ssl

    library = ctypes.PyDLL(_ssl.__file__)
    library.ERR_new()
    library.ERR_set_error(_LIBRARY_SYSTEM, errno.EPIPE, None)


class Bystander:
    """A session with a complete handshake that has received nothing."""

    def __init__(self, server: ssl.SSLContext, client: ssl.SSLContext) -> None:
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._session = server.wrap_bio(to_server, to_client, server_side=True)
        self._peer = client.wrap_bio(to_client, to_server, server_hostname="localhost")
        sides = [self._peer, self._session]
        while sides:
            side = sides.pop(0)
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                sides.append(side)
        assert self.is_well()

    def is_well(self) -> bool:
        """Whether reading says that there is nothing yet."""
        try:
            self._session.read(1)
        except ssl.SSLWantReadError:
            return True
        except OSError:
            return False
        raise AssertionError("nothing was sent")
