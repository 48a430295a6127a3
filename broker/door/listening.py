"""The error for an address that cannot be listened on: which setting names it, and the remedy."""

from __future__ import annotations

import errno
import socket

_NO_ADDRESS = "set an address of this machine"
_REMEDIES = {
    errno.EADDRINUSE: "another program listens there; stop it, or set another port",
    errno.EACCES: "this user may not use it; set a port above 1023",
    errno.EADDRNOTAVAIL: _NO_ADDRESS,
    errno.EAFNOSUPPORT: _NO_ADDRESS,
}


class ListenError(Exception):
    """The address cannot be listened on; the text names the setting and the remedy."""

    @classmethod
    def of(cls, setting: str, host: str, port: int, error: OSError | TypeError) -> ListenError:
        """Return the error for *error*, where *setting* requested *host* and *port*.

        A `TypeError` means a name that cannot be looked up at all: it has a null character, or too long a label.
        """
        said, remedy = str(error), _NO_ADDRESS
        if isinstance(error, OSError):
            said = error.strerror or ""
            if not isinstance(error, socket.gaierror):  # Its error numbers are a different set.
                remedy = _REMEDIES.get(error.errno or 0, "")
        where = host if host.isprintable() else repr(host)
        return cls(f"{setting}: {where} port {port} cannot be listened on: {'; '.join(filter(None, (said, remedy)))}")
