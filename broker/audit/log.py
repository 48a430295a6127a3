"""What the broker decided, as entries of its audit log: taken on the event loop, written by a thread.

Theory
------
Who is let in, refused, denied something or put out is told to the history (`broker.engine.history`); it tells the audit
log with the same words, so log, history, reason string and audit agree. Reloads and requests of operators tell it too.
On the loop an entry is a tuple in a queue; encoding, codes and the disk are the thread's, some entries at a time.

Rules
-----
1. The queue is bounded: what finds no place is lost, counted, and said by an entry when there is room again.
2. One who is refused or denied again and again gets `_MOST_A_MINUTE` entries a minute of each kind, then one with the
   number of the others: whoever knocks must not push everybody else's entries out, and the counts add up.
3. A log that cannot be written is an alarm, and with the policy ``require`` nobody is let in meanwhile. Entries wait,
   and are written in order when it can be. What waited is lost when the process dies: up to `_GATHER` seconds of it.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from broker.admission.refusal import RefusalCode, Refused, unavailable
from broker.audit.files import AuditError, AuditFiles
from broker.engine.history import Event, Happened

log = structlog.get_logger("broker")

_MOST_WAITING = 50_000
_MOST_A_MINUTE = 30
_MINUTE = 60.0
_MOST_PACED = 20_000
_GATHER = 0.25
_RETRY = 1.0
_LONGEST = 2_000
_BATCH = 2_000
_CLOSING = 5.0

_Entry = tuple[float, Mapping[str, Any]]


class AuditLog:
    """The audit log of one broker process."""

    def __init__(
        self,
        files: AuditFiles,
        outcomes: Counter[str],
        call_soon_threadsafe: Callable[..., object],
        on_state: Callable[[Refused | None], None],
    ) -> None:
        """Append to *files*, which is open; count in *outcomes*.

        *on_state* is called on the loop with what newcomers should be told while nothing can be written, None when it
        can again.
        """
        self._files = files
        self._outcomes = outcomes
        self._call_soon_threadsafe = call_soon_threadsafe
        self._on_state = on_state
        self._waiting: deque[_Entry] = deque()
        self._paced: dict[tuple[str, str], int] = {}
        """How often each kind of refusal or denial was seen of whom, this minute."""
        self._minute = 0.0
        self._lost = 0
        """How many found no place, so far; `_said`: of how many of them an entry says so."""
        self._said = 0
        self._work = threading.Event()
        self._ends = False
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)

    def start(self, **facts: object) -> None:
        """Begin to write; the first entry says that the broker has started."""
        self._thread.start()
        self.told("started", **facts)

    def close(self) -> None:
        """Write what waits, for some seconds at most."""
        self._say_again(time.monotonic())
        self.told("stopped")
        self._ends = True
        self._work.set()
        self._thread.join(_CLOSING)
        if not self._thread.is_alive():
            self._files.close()

    def saw(self, event: Event) -> None:
        """Take down what happened to a client."""
        what = event.what
        identity = "" if event.identity is None else str(event.identity)
        now = time.monotonic()
        if now - self._minute > _MINUTE or len(self._paced) >= _MOST_PACED:
            self._say_again(now)
        if what is Happened.DENIED:
            kind = event.detail.partition(":")[0]
            if event.times == 1 and self._too_often(identity or event.host, kind):
                return  # One entry with how many there were is once a minute, and not too often.
        elif what is Happened.REFUSED and self._too_often(identity or event.host, "refused"):
            return
        self._add(
            {
                "event": str(what),
                "code": str(event.code),
                "detail": event.detail,
                "identity": identity,
                "serial": event.serial,
                "client": event.client_id,
                "address": event.address,
                "times": event.times if event.times > 1 else None,
            }
        )

    def told(self, event: str, **facts: object) -> None:
        """Take down something that is not a client's."""
        self._add({"event": event, **{name: _short(value) for name, value in facts.items()}})

    def _add(self, facts: Mapping[str, Any]) -> None:
        waiting = self._waiting
        if len(waiting) >= _MOST_WAITING:
            if self._lost == self._said:
                self._on_state(_unavailable("entries come faster than they are written"))
            self._lost += 1
            self._outcomes["lost"] += 1
            return
        waiting.append((time.time(), facts))
        if not self._work.is_set():
            self._work.set()

    def _too_often(self, about: str, kind: str) -> bool:
        key = (about, kind)
        count = self._paced[key] = self._paced.get(key, 0) + 1
        return count > _MOST_A_MINUTE

    def _say_again(self, now: float) -> None:
        """Say how many entries were left out in the minute that is over."""
        paced, self._paced, self._minute = self._paced, {}, now
        for (about, kind), often in paced.items():
            if often > _MOST_A_MINUTE:
                self.told("again", about=about, what=kind, times=often - _MOST_A_MINUTE)

    # The thread

    def _run(self) -> None:
        failed = False
        while not (self._ends and not self._waiting):
            self._work.wait()
            if not self._ends:
                time.sleep(_GATHER)
            self._work.clear()
            try:
                self._write_all()
            except (OSError, ValueError, AuditError) as error:
                if not failed:
                    detail = getattr(error, "strerror", None) or str(error)
                    log.error(  # noqa: TRY400 - the disk's reason is the whole story
                        "audit log cannot be written", code="AUDIT_FAILED", detail=detail
                    )
                    self._tell(_unavailable("it cannot be written"))
                failed = True
                self._outcomes["write failed"] += 1
                if self._ends:
                    return
                time.sleep(_RETRY)
                self._work.set()
            else:
                if failed:
                    log.info("audit log is written again", code="AUDIT_WRITTEN")
                    self._tell(None)
                failed = False

    def _write_all(self) -> None:
        waiting = self._waiting
        while count := min(_BATCH, len(waiting)):
            self._outcomes["written"] += self._files.append([waiting[index] for index in range(count)])
            for _ in range(count):
                waiting.popleft()
        if lost := self._lost - self._said:
            entry = {"event": "lost", "code": "AUDIT_LOST", "times": lost}
            self._outcomes["written"] += self._files.append([(time.time(), entry)])
            self._said += lost
            log.error("entries of the audit log are lost", code="AUDIT_LOST", entries=lost)
            self._tell(None)

    def _tell(self, refusal: Refused | None) -> None:
        try:
            self._call_soon_threadsafe(self._on_state, refusal)
        except RuntimeError:  # The loop is closed: the broker ends, and nobody comes any more.
            return


def _unavailable(why: str) -> Refused:
    return unavailable(
        RefusalCode.AUDIT_UNAVAILABLE, f"the broker's audit log must be written, and {why}; try again later"
    )


def _short(value: object) -> object:
    if isinstance(value, str):
        return value[:_LONGEST]
    if isinstance(value, int | float | bool):
        return value
    text = json.dumps(value, default=str)
    return value if len(text) <= _LONGEST else text[:_LONGEST]
