"""What is said of an address that cannot be listened on: a remedy where there is one to be known."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from broker.door.listening import ListenError


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE)),
         "Address already in use; another program listens there; stop it, or set another port"),
        (OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL)),
         "Cannot assign requested address; set an address of this machine"),
        (OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT)),
         "Address family not supported by protocol; set an address of this machine"),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
         "Name or service not known; set an address of this machine"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "Too many open files"),
    ],
)  # fmt: skip
def test_the_remedy_is_about_the_error(error: OSError, said: str) -> None:
    text = str(ListenError.of("port", "192.0.2.1", 1883, error))
    assert text == f"port: 192.0.2.1 port 1883 cannot be listened on: {said}"
