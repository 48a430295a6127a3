"""No function under a handshake raises an error that it holds in a local variable (docs/decisions/0217).

The error refers to the frames that it has passed, and a frame to its local variables: such an error keeps itself alive,
and with it every caller's TLS session, until the garbage collector finds the cycle.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[4]
SOURCES = [path for folder in ("provisioning/pki", "broker/sockets") for path in (REPOSITORY / folder).glob("*.py")]


def kept(source: str) -> Iterator[str]:
    """Yield the functions of *source* that raise what they hold, or hold on to what they have caught."""
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        nodes = list(ast.walk(function))
        caught = {each.name for each in nodes if isinstance(each, ast.ExceptHandler)}
        local = {each.id for each in nodes if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)}
        for each in nodes:
            raised = each.exc if isinstance(each, ast.Raise) else None
            if isinstance(raised, ast.Attribute) or (isinstance(raised, ast.Name) and raised.id in local):
                yield function.name
            held = each.value if isinstance(each, ast.Assign | ast.AnnAssign | ast.NamedExpr) else None
            if isinstance(held, ast.Name) and held.id in caught:
                yield function.name


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_error_is_held_by_the_function_that_raises_it(path: Path) -> None:
    assert list(kept(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "body",
    [
        "    error = ValueError()\n    raise error",
        "    raise self.failure",
        "    try:\n        f()\n    except ValueError as error:\n        self.failure = error",
    ],
)
def test_one_that_is_would_be_found(body: str) -> None:
    assert list(kept(f"def f(self):\n{body}\n")) == ["f"]
