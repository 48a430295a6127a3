"""The types of values in scenarios: durations, shares, rates; and the base of all parts."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*%")


def _seconds(value: Any) -> Any:
    if isinstance(value, str):
        match = _DURATION.fullmatch(value.strip())
        if match is None:
            raise ValueError(f"{value!r} is no duration: write '500ms', '10s', '2m' or '1h'")
        return float(match[1]) * _UNITS[match[2]]
    return value


BY_HAND = {"written by": "hand"}
"""Validation context for text typed by a person, where 5 may mean 5 % or five times. A program's values are exact."""
DIRECTORY = "directory"
"""The key, in that context, of the directory in which relative paths begin."""


def _share(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, str):
        match = _SHARE.fullmatch(value.strip())
        if match is None:
            raise ValueError(f"{value!r} is no share of the fleet: write '5%'")
        return float(match[1]) / 100
    if info.context is not None and info.context.items() >= BY_HAND.items():
        raise ValueError("write a share of the fleet, as '5%'")
    return value


def _of_a_whole(share: float) -> float:
    if not 0 <= share <= 1:
        raise ValueError(f"{share * 100:.4g}% is no share: 0% to 100%")
    return share


def _not_nothing(share: float) -> float:
    if not 0 < share <= 1:
        raise ValueError(f"{share * 100:.4g}% is no share: more than 0% and at most 100%")
    return share


def _offset(value: Any) -> Any:
    if isinstance(value, str) and value[:1] in {"-", "+"}:
        seconds = _seconds(value[1:])
        return -seconds if value[0] == "-" else seconds
    return _seconds(value)


Seconds = Annotated[float, BeforeValidator(_seconds), Field(gt=0, le=7 * 86400)]
Pause = Annotated[float, BeforeValidator(_seconds), Field(ge=0, le=86400)]
Share = Annotated[float, BeforeValidator(_share), AfterValidator(_not_nothing)]
Fraction = Annotated[float, BeforeValidator(_share), AfterValidator(_of_a_whole)]
Rate = Annotated[float, Field(ge=1e-6, le=100_000)]
Interval = Annotated[Seconds, Field(ge=0.001)]
Bytes = Annotated[int, Field(ge=1, le=1_000_000_000)]
Offset = Annotated[float, BeforeValidator(_offset), Field(ge=-10 * 366 * 86400, le=10 * 366 * 86400)]


class ScenarioPart(BaseModel):
    """A part of a scenario: unknown fields are refused, and it is immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, fields: Any) -> Any:
        for name, value in fields.items() if isinstance(fields, dict) else ():
            field = cls.model_fields.get(name)
            if isinstance(value, bool) and field is not None and field.annotation is not bool:
                raise ValueError(f"{name}: {str(value).lower()} is no value for it: it is not a question of yes or no")
        return fields
