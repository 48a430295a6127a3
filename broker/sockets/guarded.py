"""What has waited goes on beside other connections: an unexpected error in it closes its own, and no other.

`broker.sockets.poller` does the same with an error in what was just read, `broker.connection.connection` with one in
what is written at the end of a turn. Without it the client would wait for ever, or those behind it.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from broker.sockets.byte_stream import ByteStream, Receiver

log = structlog.get_logger("broker")


def guarded(call: Callable[[], None], receiver: Receiver, stream: ByteStream, now: float) -> None:
    """Call *call*, which goes on for *receiver* above *stream*; if it raises, log that and close the connection."""
    try:
        call()
    except MemoryError:  # Not the fault of this connection: `provisioning.program.out_of_memory`.
        raise
    except Exception:
        log.exception("connection failed", code="INTERNAL_ERROR")
        give_up(receiver, stream, now)


def give_up(receiver: Receiver, stream: ByteStream, now: float) -> None:
    """Close the connection of *receiver* above *stream* at once, whatever error that meets."""
    try:
        receiver.lost("ABORTED", now)
    finally:
        stream.reset()
