"""A program that runs any Python text, for tests of how programs start and end: `tests/unit/test_programs.py`.

python -m tests.support.any_text 'import sys; sys.exit(3)'
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    exec(sys.argv[1], {})  # noqa: S102 - it is what this is for
