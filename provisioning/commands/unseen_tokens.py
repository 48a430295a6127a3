"""One-time tokens that could not be written where they should be: nobody has seen them, and they are voided.

Nobody could identify them later among those that somebody has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from provisioning.commands.service_command import counted

if TYPE_CHECKING:
    from provisioning.client.enrolment import EnrolmentOperatorClient
    from provisioning.client.operator_answers import IssuedToken


async def void_unseen(client: EnrolmentOperatorClient, tokens: Sequence[IssuedToken]) -> str:
    """Void *tokens*, and return what became of them: the end of an error's sentence."""
    from provisioning.client.operator import RequestRefused, ServiceUnavailable  # Late: `service_command`, rule 3.

    numbers = [each.id for each in tokens if each.id is not None]
    is_one = len(numbers) == 1
    try:
        await client.void_tokens(numbers)
    except (RequestRefused, ServiceUnavailable) as error:
        which = f"token {numbers[0]} is" if is_one else f"tokens {numbers[0]} to {numbers[-1]} are"
        return f"{which} valid, and nobody has seen {'it' if is_one else 'them'}: token void ({error})"
    return f"{'the token was' if is_one else counted(len(numbers), 'token') + ' were'} voided again"
