"""What goes wrong with plugins: in the settings, and in what a plugin asks of the broker."""

from __future__ import annotations

import asyncio


class PluginError(Exception):
    """A plugin of the settings cannot be used; the text names the setting and the remedy."""


class NotOffered(NotImplementedError):
    """A plugin asks for what this broker does not offer to plugins; the text says why, and what to do instead."""


class Denied(PermissionError):
    """A plugin asks for what the broker's own rules do not permit; the text says which."""


def is_a_plugin_s(error: BaseException) -> bool:
    """Whether a plugin has raised *error*, met where one is called, so that it concerns that plugin alone.

    A library of its own may want to end the program, or hand on that a task of its own was cancelled; neither is for
    the broker. Whether it is the broker's own task that is cancelled, that task knows.
    """
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is not None and not task.cancelling()
    return isinstance(error, Exception | SystemExit)
