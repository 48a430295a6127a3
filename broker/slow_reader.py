"""What a client that does not keep up is not sent.

Hot where somebody is slow: once a write to such a client.
"""

from __future__ import annotations

from broker.metrics import Metrics

_QOS0_PUBLISH = 0x30
_RETAIN_BIT = 0xFE


def without_qos0(packets: list[bytes], metrics: Metrics) -> list[bytes]:
    """Return *packets* without the QoS 0 messages, which are counted as dropped."""
    kept = [packet for packet in packets if packet[0] & _RETAIN_BIT != _QOS0_PUBLISH]
    metrics.dropped_slow_consumer += len(packets) - len(kept)
    return kept
