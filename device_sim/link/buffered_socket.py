"""A TLS socket as paho sees it: many small reads and writes outside, few large ones inside.

Theory
------
paho reads a packet byte by byte and writes each packet separately. Through this wrapper one ``recv`` of a whole TLS
record serves all those reads, and everything written in one turn of the loop is sent as one record.

Rules
-----
1. `recv` and `send` never block and never access the network needlessly; `flush` does the writing.
2. The output is bounded: above the limit `send` raises `BlockingIOError`, as a full socket would. `queue` does not
   look at the limit: it is for a few bytes, now and then.
3. A failed write is reported by a later `recv`, after the data that the peer had sent before: that includes the TLS
   alert that explains the failure.
4. `close` closes cleanly: pending output, then close_notify, as far as possible without waiting.
"""

from __future__ import annotations

import ssl

from provisioning.pki.openssl import forget_errors, say_goodbye

RECORD = 16 * 1024
OUTPUT_LIMIT = 256 * 1024


class BufferedSocket:
    """What paho calls a SocketLike, on top of a non-blocking `ssl.SSLSocket` after its handshake."""

    __slots__ = ("_input", "_output", "_position", "_tls", "_write_error")

    def __init__(self, tls: ssl.SSLSocket) -> None:
        self._tls = tls
        self._input = b""
        self._position = 0
        self._output = bytearray()
        self._write_error: OSError | None = None

    @property
    def tls(self) -> ssl.SSLSocket:
        """The socket underneath."""
        return self._tls

    @property
    def unread(self) -> bool:
        """Whether there is input that polling the descriptor will not report."""
        return self._position < len(self._input) or self._tls.pending() > 0

    @property
    def unsent(self) -> bool:
        """Whether output waits for the socket to become writable."""
        return bool(self._output)

    def recv(self, buffer_size: int) -> bytes:
        """Return up to *buffer_size* bytes; raise `ssl.SSLWantReadError` when there are none."""
        start = self._position
        if start == len(self._input):
            try:
                self._input = self._read()
            except ssl.SSLWantReadError:
                if self._write_error is not None:
                    raise self._write_error from None
                raise
            except OSError:
                forget_errors()
                raise
            start = 0
        self._position = end = start + buffer_size
        if end < len(self._input):
            return self._input[start:end]
        taken = self._input[start:]
        self._input = b""
        self._position = 0
        return taken

    def _read(self) -> bytes:
        """Return what the peer has sent, empty at its end; raise what `ssl` raises."""
        return self._tls.recv(RECORD)

    def send(self, buffer: bytes | bytearray) -> int:
        """Queue *buffer* for the next `flush`."""
        if len(self._output) > OUTPUT_LIMIT:
            raise BlockingIOError
        self.queue(buffer)
        return len(buffer)

    def queue(self, buffer: bytes | bytearray) -> None:
        """Queue *buffer* for the next `flush`, however much is queued already."""
        if self._write_error is None:
            self._output += buffer

    def flush(self) -> None:
        """Write what is queued, as far as the socket accepts it (see `unsent`)."""
        try:
            # Without SSL_MODE_ENABLE_PARTIAL_WRITE a write is all or nothing, and is repeated with no less.
            while self._output:
                del self._output[: self._tls.send(self._output)]
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError, BlockingIOError):
            return
        except OSError as error:
            forget_errors()
            self._write_error = error
            self._output.clear()

    @property
    def failed(self) -> bool:
        """Whether a write has failed, so that `recv` has something to report."""
        return self._write_error is not None

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self._tls.fileno()

    def setblocking(self, flag: bool) -> None:
        """Do nothing: the socket never blocks, whatever paho requests."""

    def close(self) -> None:
        """Send queued data and close_notify if the socket accepts them at once, and close."""
        self.flush()
        # A clean close keeps the TLS session resumable; unwrap() would now wait for the peer's close_notify.
        say_goodbye(self._tls)
        self._tls.close()
