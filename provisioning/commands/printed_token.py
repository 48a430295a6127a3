"""A one-time token on standard output, for a person or a shell that captures it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from provisioning.commands.service_command import print_json, say
from provisioning.commands.unseen_tokens import void_unseen
from provisioning.errors import ConfigurationError
from provisioning.program.given_up_output import give_up_output

if TYPE_CHECKING:
    from provisioning.client.enrolment import EnrolmentOperatorClient
    from provisioning.client.operator_answers import IssuedToken


async def print_token(client: EnrolmentOperatorClient, token: IssuedToken, about: str, *, as_json: bool) -> None:
    """Print *token*, alone on its line after *about* on standard error, or with its facts as JSON.

    If that fails, it is voided: here, not at the end of the command, an error of the output still says which token.
    """
    try:
        if as_json:
            print_json(token)
        else:
            say(about)
            sys.stdout.write(f"{token.token}\n")
        sys.stdout.flush()
    except OSError as error:
        give_up_output()
        voided = await void_unseen(client, [token])
        raise ConfigurationError(f"the output cannot be written: {error.strerror}; {voided}") from error
