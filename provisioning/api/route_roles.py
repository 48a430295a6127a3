"""Which role a route of the operators' API needs: closed by default."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol, Self, TypeVar

from provisioning.enrolment.authentication import AuthenticatedOperator
from provisioning.operator_role import OperatorRole

EndpointT = TypeVar("EndpointT", bound=Callable[..., object])


class Asked(Protocol):
    """A request's body, some of which only some operators may ask for."""

    @classmethod
    def model_validate(cls, obj: Any) -> Self:
        """Read it; raise ValueError."""

    def check(self, operator: AuthenticatedOperator) -> None:
        """Raise `Refused` unless *operator* may ask for it."""


_READING: Final = frozenset({"GET", "HEAD"})
_NEEDED = "needed_operator_role"
_ASKED = "asked_of_operator"


def for_role(role: OperatorRole, asked: type[Asked] | None = None) -> Callable[[EndpointT], EndpointT]:
    """Mark a route as open to operators of *role*. Without a mark: auditors may read, and only admins change.

    Where the route lets only some of them have all that can be asked for, *asked* is its body, which says so.
    """

    def mark(endpoint: EndpointT) -> EndpointT:
        setattr(endpoint, _NEEDED, role)
        setattr(endpoint, _ASKED, asked)
        return endpoint

    return mark


def changes(method: str) -> bool:
    """Whether a request may change something."""
    return method not in _READING


def needed_role(method: str, endpoint: object) -> OperatorRole:
    """Return which role a route needs."""
    default = OperatorRole.ADMIN if changes(method) else OperatorRole.AUDITOR
    role: OperatorRole = getattr(endpoint, _NEEDED, default)
    return role


def asked_of(endpoint: object) -> type[Asked] | None:
    """Return the body of a route whose needed role depends on that."""
    asked: type[Asked] | None = getattr(endpoint, _ASKED, None)
    return asked
