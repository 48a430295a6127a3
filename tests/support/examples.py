"""How many examples a property test takes, where a hundred are too many or too few.

A figure given to hypothesis's `settings` counts whatever the profile says: `make test-thorough`, which is a profile,
would take as few as ever. So one that is given here is multiplied like the profile's own.
"""

from __future__ import annotations

from typing import Any, Final

from hypothesis import settings

TIMES: Final[int] = settings().max_examples // settings.get_profile("fleetgate").max_examples
"""So many times as many examples as in `make test`."""
IS_THOROUGH: Final = TIMES > 1
"""Whether this is `make test-thorough`."""


def examples(normally: int, **others: Any) -> settings:
    """Take so many in `make test`, and as many times more in another profile as that one says."""
    return settings(max_examples=normally * TIMES, **others)
