"""The packet that introduces a Topic Alias to a client; later packets rely on it (MQTT 5 §3.3.2.3.4).

Not compiled: mypyc cannot subclass `bytes`. Handles: being recognisable among packets. Does not handle: which topic
gets an alias (the session does).
"""

from __future__ import annotations


class Introduction(bytes):
    """One whole PUBLISH that introduces an alias: whatever its QoS, it is not dropped on its way to the client."""

    __slots__ = ()
