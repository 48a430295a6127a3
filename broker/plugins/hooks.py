"""The names and arguments of a plugin's hooks: the methods that amqtt calls.

Theory
------
amqtt finds out only at the call: a misspelt hook is never called, and one with the wrong arguments raises each time.
For a plugin that decides, that means nobody is admitted; for one that listens, that it learns nothing. All of this is
visible in the class, so it is checked before the broker starts (``--test-config``).

Rules
-----
1. ``on_broker_…`` and ``on_mqtt_…`` are amqtt's names: one that is not an event is a mistake. Any other method is the
   plugin's own business.
2. Hooks take their arguments by name. A hook must accept every argument that it is given, and require no others.

Does not handle: attributes that only an instance has (`broker.plugins.plugin_set` looks for its coroutines).
"""

from __future__ import annotations

from inspect import getattr_static, iscoroutinefunction, signature
from types import FunctionType
from typing import Any, Final

from amqtt.plugins.base import BaseAuthPlugin, BasePlugin, BaseTopicPlugin

from broker.plugins.errors import PluginError
from provisioning.program.near_names import nearest

QUESTIONS: Final = (
    (BaseAuthPlugin, "authenticate", ("session",)),
    (BaseTopicPlugin, "topic_filtering", ("session", "topic", "action")),
)
"""The questions to each kind of plugin, with their arguments."""
EVENTS: Final[dict[str, tuple[str, ...]]] = {
    "on_broker_pre_start": (),
    "on_broker_post_start": (),
    "on_broker_pre_shutdown": (),
    "on_broker_post_shutdown": (),
    "on_broker_client_connected": ("client_id", "client_session"),
    "on_broker_client_disconnected": ("client_id", "client_session"),
    "on_broker_client_subscribed": ("client_id", "topic", "qos"),
    "on_broker_client_unsubscribed": ("client_id", "topic"),
    "on_broker_message_received": ("client_id", "message"),
    "on_broker_message_broadcast": ("client_id", "message"),
    "on_broker_retained_message": ("client_id", "retained_message"),
    "on_mqtt_packet_received": ("packet", "session"),
    "on_mqtt_packet_sent": ("packet", "session"),
}
"""The events for plugins, with their arguments."""
_OF_AMQTT = ("on_broker_", "on_mqtt_")


def check_hooks(path: str, plugin_class: type[BasePlugin[Any]]) -> None:
    """Raise `PluginError` if the class at *path* has a hook that would not, or could not, be called."""
    for kind, name, given in QUESTIONS:
        if issubclass(plugin_class, kind):
            _check(path, plugin_class, name, given)
    for name in dir(plugin_class):
        if name in EVENTS:
            _check(path, plugin_class, name, EVENTS[name])
        elif name.startswith(_OF_AMQTT):
            near = nearest(name, EVENTS)
            raise PluginError(
                f"plugins: {path}: {name} is never called: there is no such event"
                + (f"; did you mean {near}?" if near else f": {', '.join(sorted(EVENTS))}")
            )


def _check(path: str, plugin_class: type[BasePlugin[Any]], name: str, given: tuple[str, ...]) -> None:
    if not iscoroutinefunction(getattr(plugin_class, name)):
        raise PluginError(f"plugins: {path}: {name} must be defined with 'async def'")
    hook = getattr_static(plugin_class, name)
    if not isinstance(hook, FunctionType):  # Decorated, or not a plain function: only a call can tell.
        return
    try:
        signature(hook).bind(None, **dict.fromkeys(given))
    except TypeError as error:
        takes = ", ".join(("self", "*", *given) if given else ("self",))
        raise PluginError(
            f"plugins: {path}: {name} has the wrong parameters ({error}); define it as {name}({takes})"
        ) from error
