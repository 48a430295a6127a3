"""Strings and comments in TOML, for whoever looks for what is outside of them (https://toml.io/en/v1.0.0#string)."""

from __future__ import annotations

from typing import Final

STRING: Final = (
    r'"""(?:[^\\]|\\(?:.|\Z))*?(?:"{3,5}|\Z)|\'\'\'.*?(?:\'{3,5}|\Z)|"(?:[^"\\\n]|\\[^\n])*"?|\'[^\'\n]*\'?|#[^\n]*'
)
"""A string, or a comment. A string may end with quotation marks of its own: up to two before the three that close it.

One that is not closed matches too. If it did not, each quotation mark within it would be tried as the beginning of
another, which takes the square of its length.
"""
