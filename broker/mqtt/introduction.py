"""The packet that tells a client of a Topic Alias, which later packets count on (MQTT 5 §3.3.2.3.4).

Not compiled: a subclass of `bytes` is Python's to make. Handles: being told from other packets. Does not handle: which
topic gets an alias (the session does).
"""

from __future__ import annotations


class Introduction(bytes):
    """One whole PUBLISH that introduces an alias: whatever its QoS, it is not left out on its way to the client."""

    __slots__ = ()
