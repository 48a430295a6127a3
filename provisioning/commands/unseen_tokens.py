"""One-time tokens that could not be written where they should be: nobody has seen them, and they are voided.

Nobody could identify them later among those that somebody has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from provisioning.program.counted import counted

if TYPE_CHECKING:
    from provisioning.client.enrolment import EnrolmentOperatorClient
    from provisioning.client.operator_answers import IssuedToken


async def void_unseen(client: EnrolmentOperatorClient, tokens: Sequence[IssuedToken]) -> str:
    """Void *tokens*, and return what became of them: the end of an error's sentence."""
    from provisioning.client.operator import RequestRefused, ServiceUnavailable  # Late: `service_command`, rule 3.

    numbers = sorted(each.id for each in tokens if each.id is not None)
    if len(numbers) < len(tokens):
        return _unvoided([], len(tokens), "an older service tells no numbers")
    try:
        await client.void_tokens(numbers)
    except (RequestRefused, ServiceUnavailable) as error:
        return _unvoided(numbers, len(tokens), str(error))
    return f"{'the token was' if len(tokens) == 1 else counted(len(tokens), 'token') + ' were'} voided again"


def _unvoided(numbers: Sequence[int], of: int, why: str) -> str:
    named = "".join(f" {each}" for each in _runs(numbers))
    which, them = (f"token{named} is", "it") if of == 1 else (f"tokens{named} are", "them")
    return f"{which} valid, and nobody has seen {them}: token void ({why})"


def _runs(numbers: Sequence[int]) -> list[str]:
    """Return *numbers* in ascending order with successive ones together: between them may be others' tokens."""
    runs = list[list[int]]()
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    told = [f"{run[0]} to {run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs]
    return [f"{each}," for each in told[:-1]] + told[-1:]
