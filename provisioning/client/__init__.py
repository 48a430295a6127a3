"""The clients of the service, which device, tool and broker speak to it with.

httpcore, below httpx, asks whether there is a `sniffio` whenever it makes a lock or an event: three times a request. It
has not come with anyio since 4.12, and what is not there is looked for in every folder of ``sys.path`` each time: a
third of what a request costs. A name that is None in `sys.modules` is looked for no more (Python Language Reference
§5.3.1); where somebody has installed it, for trio, it is found as ever.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

_modules: dict[str, Any] = sys.modules
if "sniffio" not in _modules and importlib.util.find_spec("sniffio") is None:
    _modules["sniffio"] = None
