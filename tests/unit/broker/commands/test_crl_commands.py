"""What `fleet-broker crl status` tells a person of the staple."""

from __future__ import annotations

from typing import Any

import pytest

from broker.commands.crl_commands import told_staple

HELD = {
    "serial": "66a9", "responder": "http://ca.example/ocsp", "this_update": "2026-11-27T14:04:58Z",
    "next_update": "2026-11-28T14:04:58Z", "age_seconds": 97, "seconds_left": 86303,
}  # fmt: skip
PROBLEM = "http://ca.example/ocsp: it does not answer"


@pytest.mark.parametrize(
    ("staple", "words"),
    [
        ({"state": "off"}, "off"),
        ({"state": "no responder"}, "no responder"),
        ({"state": "current", **HELD}, "current, made 1m 37s ago, good until 2026-11-28 14:04:58 UTC"),
        (
            {"state": "late", **HELD, "problem": PROBLEM},
            f"late, made 1m 37s ago, good until 2026-11-28 14:04:58 UTC; {PROBLEM}",
        ),
        ({"state": "missing", "serial": "66a9", "responder": "http://x", "problem": PROBLEM}, f"missing; {PROBLEM}"),
    ],
)
def test_the_staple_is_told_in_words(staple: dict[str, Any], words: str) -> None:
    assert told_staple(staple) == words
