"""Judging very many sessions by a policy: those that differ in nothing but the device's name are judged once.

Theory
------
A fleet's sessions are alike: ``fleet/north/meter-1/cmd`` and ``fleet/north/meter-2/cmd`` are what one template makes
of two names. So the device's name in what a session has is replaced by a mark. If what results was judged before, for a
client of the same role and group, and there was nothing to lose, then there is nothing to lose now.

That is right as long as the policy cannot tell the names apart. It compares level by level, and there are few cases: a
level that is the name equals a placeholder of it whatever the name is, and differs from any other level of a rule, as
long as none of those, nor the group, is the name (`_own`); a level without the name differs from each that is made of
it. No policy for one device or identity may concern the client, and its client identifier must be its name.

Rules
-----
1. Only *nothing to lose* is remembered. Whatever else is found, or cannot be compared, is judged by itself.
2. Slow twin: `broker.reload.loss.judge`; `tests/properties/test_alike_properties.py` compares them.
3. Lives as long as one policy is applied to all sessions; bounded.
"""

from __future__ import annotations

import re
from typing import Final

from broker.admission.policy import TopicPolicy
from broker.reload.loss import Judged, Loss, judge, left_will

_MARK: Final = "\0"
"""Stands for the name: no topic and no filter may contain it [MQTT-4.7.3-2]."""
_BETWEEN: Final = "\n"
_LEVEL: Final = re.compile(f"[/{_BETWEEN}]")
_MOST_REMEMBERED: Final = 4096
_LONGEST_REMEMBERED: Final = 1024

Likeness = tuple[object, ...]


class Judge:
    """Judges by one policy."""

    __slots__ = ("_fine", "_own", "_policy")

    def __init__(self, policy: TopicPolicy) -> None:
        self._policy = policy
        self._own = policy.own_names
        self._fine: set[Likeness] = set()

    def loss(self, session: Judged, *, ours: bool, goes: bool = False, wills: bool = True) -> Loss | None:
        """Return what `broker.reload.loss.judge` does."""
        owner = session.owner
        name, own = owner.name, self._own
        if own is None or name in own or name in (owner.group, "") or session.client_id != name:
            return judge(self._policy, session, ours=ours, goes=goes, wills=wills)
        filters = _BETWEEN.join(session.subscriptions).replace(name, _MARK)
        will = left_will(session, goes=goes, wills=wills) if session.will is not None else None
        topic = will.message.topic.decode().replace(name, _MARK) if will is not None else ""
        connected = session.connected and not goes
        like = (owner.role, owner.group, ours, connected, len(session.subscriptions), filters, topic)
        if like in self._fine:
            return None
        loss = judge(self._policy, session, ours=ours, goes=goes, wills=wills)
        if loss is None and _is_clear(filters, len(session.subscriptions)) and _is_clear(topic, 1):
            if len(self._fine) >= _MOST_REMEMBERED:
                self._fine.clear()
            self._fine.add(like)
        return loss


def _is_clear(text: str, parts: int) -> bool:
    """Whether *text* is *parts* of which no other sessions could have made the same, and marks are whole levels."""
    return (
        len(text) <= _LONGEST_REMEMBERED
        and text.count(_BETWEEN) == max(parts - 1, 0)
        and all(level == _MARK or _MARK not in level for level in _LEVEL.split(text))
    )
