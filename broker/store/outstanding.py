"""Which dispatches somebody waits for: what the journal knows of them while they are written, and afterwards.

Theory
------
A session that is done with its message is struck from the dispatch, if that is not written yet. Otherwise the next
batch says which places are left of it, or that none are. So the places of each dispatch to several sessions are in
memory, until the last of them is done; of one to a single session nothing is, once its batch is taken: when that is
done, so is the dispatch.

Hot: `add`, `remove`. Budget: part of those of `broker.store.dispatch`, where many sessions get a message, and of
`broker.session.recipient`, where one does; benchmarks/kept_sessions.py and benchmarks/hot_calls.py measure them. Slow
twin: a list of each session's messages, in tests/properties/test_deliveries_properties.py.

Rules
-----
1. A dispatch takes further sessions only while nothing of another message was added: else a session that gets both
   would get them in another order after a restart.
2. A row is written anew, without those that are done, when it is in the store: not while that is under way.
3. No I/O, no clock.
"""

from __future__ import annotations

from typing import Final

from broker.mqtt.message import PersonalMessage
from broker.store.batch import Batch
from broker.store.dispatch import PLACE_BITS, Dispatch

_KINDS: Final = 8
"""Dispatches of the present message among which one is looked for; with more kinds of receivers there are more rows."""


class Outstanding:
    """The dispatches of one journal that are not done, as far as it must know them."""

    __slots__ = ("_last_number", "_latest", "_present", "_several")

    def __init__(self, last_number: int) -> None:
        """Begin with the highest number of a dispatch in use."""
        self._last_number = last_number
        self._several: dict[int, Dispatch] = {}
        """Those to several sessions that are in the store, or were to be, by number."""
        self._latest: Dispatch | None = None
        """The one in the open batch that took a session last."""
        self._present: list[Dispatch] = []
        """All of the same message, if there are several."""

    def restore(self, number: int, listed: int, left: int) -> None:
        """Take note of one that is in the store, of the places *listed* there, and those that are *left*."""
        dispatch = Dispatch(number, None, 0)
        dispatch.listed, dispatch.left = listed, left
        if not dispatch.is_single:
            self._several[number] = dispatch

    def add(self, batch: Batch, session: int, stored: PersonalMessage) -> None:
        """Record in the open *batch* that the session with that row must receive *stored*."""
        latest = self._latest
        if latest is None or latest.message != stored.message.row:
            if self._present:
                self._present = []
        elif latest.add(session, stored):
            return
        else:
            if not self._present:
                self._present.append(latest)
            for other in self._present[-_KINDS:]:
                if other.add(session, stored):
                    self._latest = other
                    return
        self._last_number = number = self._last_number + 1
        self._latest = batch.deliveries[number] = dispatch = Dispatch(number, stored, session)
        if self._present:
            self._present.append(dispatch)
        stored.sequence = number << PLACE_BITS

    def remove(self, batch: Batch, sequence: int, *, recorded: bool) -> bool:
        """Record in the open *batch* that a delivery is over; return whether that has to be written.

        *recorded*: its packet identifier was, in this batch or in one that is written or being written.
        """
        number = sequence >> PLACE_BITS
        if recorded:
            batch.progress.pop(sequence, None)
            if batch.sent.pop(sequence, None) is not None:
                recorded = False  # At QoS 1 that is done once.
        dispatch = batch.deliveries.get(number)
        if dispatch is not None:  # Never written: it is struck.
            if not dispatch.finish(sequence):
                del batch.deliveries[number]
                self._several.pop(number, None)
            return False
        if recorded:
            batch.finished.append((sequence,))
        dispatch = self._several.get(number)
        if dispatch is None:
            batch.done.append((number,))
        else:
            batch.remaining[number] = dispatch.finish(sequence)
            if not dispatch.left:
                del self._several[number]
        return True

    def taken(self, batch: Batch) -> None:
        """Take note that *batch* is open no more: it is to be written as it is."""
        self._latest = None
        self._present = []
        batch.seal()
        for number, dispatch in batch.deliveries.items():
            if not dispatch.is_single:
                self._several[number] = dispatch
        for number, left in batch.remaining.items():
            if left and self._several[number].thin():
                batch.thinned.add(number)

    def written(self, batch: Batch) -> None:
        """Forget the sessions of the dispatches in *batch*, which are in the store."""
        for dispatch in batch.deliveries.values():
            dispatch.like, dispatch.sessions = None, []
