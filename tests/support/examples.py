"""How many examples a property test takes, where a hundred are too many or too few.

A figure given to hypothesis's `settings` counts whatever the profile says: `make test-thorough`, which is a profile,
would take as few as ever. So one that is given here is multiplied like the profile's own. On the compiled code, where
properties run again, they take half as many.
"""

from __future__ import annotations

from typing import Any, Final

from hypothesis import settings

TIMES: Final[float] = settings().max_examples / settings.get_profile("fleetgate").max_examples
"""So many times as many examples as in `make test`; on the compiled code a half."""
IS_THOROUGH: Final = TIMES > 1
"""Whether this is `make test-thorough`."""


def examples(normally: int, *, of: int = 0, **others: Any) -> settings:
    """Take so many in `make test`; in another profile as many times more as that one says, of *of* if there is one.

    *of* is for a property whose examples are costly. Each run tries others, and most such properties run again on the
    compiled code, with examples of their own: both together find at once, with 95 %, what one example in 20 shows.
    """
    return settings(max_examples=round(((of or normally) if TIMES > 1 else normally) * TIMES), **others)
