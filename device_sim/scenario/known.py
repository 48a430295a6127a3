"""The fields that exist at a place in a model: what an error about an unknown one should list."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel


def known_at(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """Return the names of the fields at *location*, as pydantic gives it in an error about *model*."""
    here: list[type[BaseModel]] = [model]
    for step in location:
        if isinstance(step, str) and not _is_tag(here, step):
            fields = [candidate.model_fields[step] for candidate in here if step in candidate.model_fields]
            here = [found for field in fields for found in _models(field.annotation)]
        elif isinstance(step, str):
            here = [candidate for candidate in here if _tag_of(candidate) == step]
    return sorted({name for candidate in here for name in candidate.model_fields if name != "kind"})


def _is_tag(models: Sequence[type[BaseModel]], step: str) -> bool:
    return any(_tag_of(candidate) == step for candidate in models)


def _tag_of(model: type[BaseModel]) -> Any:
    field = model.model_fields.get("kind")
    return field.default if field is not None else None


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)
