"""An address that cannot be listened on: which setting asks for it, and what to do."""

from __future__ import annotations

import errno
import socket

_NO_ADDRESS = "set an address of this machine"
_REMEDIES = {
    errno.EADDRINUSE: "another program listens there; stop it, or set another port",
    errno.EACCES: "this user may not; set a port above 1023",
    errno.EADDRNOTAVAIL: _NO_ADDRESS,
}


class ListenError(Exception):
    """The address cannot be listened on; the text names the setting, and says what to do."""

    @classmethod
    def of(cls, setting: str, host: str, port: int, error: OSError | TypeError) -> ListenError:
        """Return what *error* means where *setting* asked for *host* and *port*.

        A `TypeError` is of a name that cannot be looked up at all: with a null character, or a label that is too long.
        """
        said, remedy = str(error), _NO_ADDRESS
        if isinstance(error, OSError):
            said = error.strerror or ""
            if not isinstance(error, socket.gaierror):  # Its numbers are another list's.
                remedy = _REMEDIES.get(error.errno or 0, "")
        where = host if host.isprintable() else repr(host)
        return cls(f"{setting}: {where} port {port} cannot be listened on: {'; '.join(filter(None, (said, remedy)))}")
