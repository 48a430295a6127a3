"""What a party is to the fleet, in a module of its own: a command that takes a role needs no certificates."""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    """What a party is to the fleet; decides what it may do everywhere."""

    DEVICE = "device"
    BROKER = "broker"
    SERVICE = "service"
    OPERATOR = "operator"
