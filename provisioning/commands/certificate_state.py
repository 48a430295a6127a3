"""A certificate's state in a table for people: one on trial is on hold, but nobody has suspended it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from provisioning.client.operator_answers import IssuedCertificate

_OF_TRIALS: Final = {"awaited": "on trial", "activated": "activated", "ended": "trial over"}


def shown_state(certificate: IssuedCertificate) -> str:
    """Return its state, or if it was issued on trial what has become of that."""
    return certificate.state if certificate.trial is None else _OF_TRIALS.get(certificate.trial, certificate.state)
