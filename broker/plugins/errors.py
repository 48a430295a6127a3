"""Errors with plugins: in the settings, and in what a plugin requests from the broker."""

from __future__ import annotations

import asyncio


class PluginError(Exception):
    """A configured plugin is unusable; the text names the setting and the remedy."""


class NotOffered(NotImplementedError):
    """A plugin requests something that this broker does not offer; the text gives the reason and the alternative."""


class Denied(PermissionError):
    """A plugin requests something that the broker's own rules do not permit; the text says which."""


def is_a_plugin_s(error: BaseException) -> bool:
    """Whether a plugin raised *error*, caught where one is called, so that it affects that plugin alone.

    A library in it may try to exit the program, or pass on the cancellation of a task of its own; neither may reach the
    broker. Whether the broker's own task is being cancelled, that task knows.
    """
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is not None and not task.cancelling()
    return isinstance(error, Exception | SystemExit)
