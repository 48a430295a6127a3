"""A quickly made value is what the same dataclass without the decorator would be."""

from __future__ import annotations

import copy
import inspect
import pickle
from dataclasses import KW_ONLY, FrozenInstanceError, asdict, dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning.quick_values import quickly_made


@dataclass(frozen=True, slots=True)
class Slow:
    """Every kind of field that is handled."""

    first: int
    second: str = "two"
    third: tuple[int, ...] = field(default_factory=lambda: (1, 2))
    hidden: bytes = field(default=b"h", repr=False, compare=False)
    size: int = field(init=False)

    def __post_init__(self) -> None:
        """Set what is no parameter, and refuse what is no good."""
        if self.first < 0:
            raise ValueError("first is below 0")
        object.__setattr__(self, "size", len(self.second) + len(self.third))


Quick: type[Slow] = quickly_made(
    dataclass(frozen=True, slots=True)(
        type(
            "Slow",
            (),
            {
                "__annotations__": dict(Slow.__annotations__),
                "__module__": __name__,
                "__doc__": Slow.__doc__,
                "second": "two",
                "third": field(default_factory=lambda: (1, 2)),
                "hidden": field(default=b"h", repr=False, compare=False),
                "size": field(init=False),
                "__post_init__": Slow.__post_init__,
            },
        )
    )
)

FIELDS = {
    "first": st.integers(-3, 9),
    "second": st.text(max_size=3),
    "third": st.lists(st.integers(), max_size=3).map(tuple),
    "hidden": st.binary(max_size=3),
    "size": st.integers(),
    "unknown": st.none(),
}


def _made(cls: Any, arguments: list[Any], named: dict[str, Any]) -> Any:
    try:
        value = cls(*arguments, **named)
    except (TypeError, ValueError) as error:
        return type(error)
    return asdict(value), repr(value), hash(value)


@given(
    st.integers(0, 4).flatmap(lambda count: st.tuples(*list(FIELDS.values())[:count])).map(list),
    st.fixed_dictionaries({}, optional=FIELDS),
)
def test_it_takes_and_refuses_what_the_slow_one_does(arguments: list[Any], named: dict[str, Any]) -> None:
    assert _made(Quick, arguments, named) == _made(Slow, arguments, named)


def test_it_has_the_same_signature() -> None:
    assert inspect.signature(Quick) == inspect.signature(Slow)


@quickly_made
@dataclass(frozen=True, slots=True)
class Pair:
    """One that can be found by its name."""

    left: int
    right: int = 2


def test_it_is_immutable() -> None:
    pair = Pair(1)
    with pytest.raises(FrozenInstanceError):
        pair.left = 3  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        del pair.left
    assert pair == Pair(1, 2)


def test_it_can_be_copied() -> None:
    pair = Pair(1, 3)
    assert pickle.loads(pickle.dumps(pair)) == copy.deepcopy(pair) == replace(pair) == pair  # noqa: S301 - Ours.
    assert replace(pair, left=5) == Pair(5, 3) != pair


@dataclass(frozen=True)
class Open:
    """Without slots."""

    one: int


@dataclass(frozen=True, slots=True)
class Named:
    """With a field for keywords only."""

    _: KW_ONLY
    one: int


@dataclass(frozen=True, slots=True)
class Heir(Pair):
    """With slots of another."""

    more: int = 0


@pytest.mark.parametrize("cls", [Open, Named, Heir, int])
def test_what_it_does_not_fit_is_refused(cls: type) -> None:
    with pytest.raises(TypeError, match=cls.__name__):
        quickly_made(cls)
