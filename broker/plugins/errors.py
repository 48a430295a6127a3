"""What goes wrong with plugins: in the settings, and in what a plugin asks of the broker."""

from __future__ import annotations


class PluginError(Exception):
    """A plugin of the settings cannot be used; the text names the setting and the remedy."""


class NotOffered(NotImplementedError):
    """A plugin asks for what this broker does not offer to plugins; the text says why, and what to do instead."""


class Denied(PermissionError):
    """A plugin asks for what the broker's own rules do not permit; the text says which."""
