"""The broker's decisions as entries of its audit log: collected on the event loop, written by a thread.

Theory
------
Admissions, refusals, denials and disconnections are reported to the history (`broker.engine.history`), which passes
them to the audit log unchanged, so log, history, reason string and audit agree. Reloads and operators' requests are
reported too. On the loop an entry is a tuple in a queue; the thread does encoding, codes and disk, in batches.

Rules
-----
1. The queue is bounded: an entry that does not fit is lost, counted, and reported by an entry when there is room again.
2. A client that is refused or denied repeatedly gets `_MOST_A_MINUTE` entries per minute and kind, then one with the
   number of the rest: an intruder must not displace other clients' entries, and the counts add up.
3. A log that cannot be written, even for a defect of ours, is an alarm, and with the policy ``require`` nobody is
   admitted meanwhile. Entries wait, and are written in order when possible. Waiting entries are lost if the process
   dies: up to `_GATHER` seconds.
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
from broker.audit.files import AuditFiles
from broker.audit.head import AuditError
from broker.engine.history import Event, Happened
from provisioning.program.host_and_port import without_port

log = structlog.get_logger("broker")

OPERATOR_REFUSED = "operator refused"
_MOST_WAITING = 50_000
_MOST_A_MINUTE = 30
_MINUTE = 60.0
_MOST_PACED = 20_000
_GATHER = 0.25
_RETRY = 1.0
_LONGEST = 2_000
_BATCH = 2_000
_CLOSING = 5.0
_DEFECT = "a defect; the traceback is here"

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
        """Append to *files*, which are open; count in *outcomes*.

        *on_state* is called on the loop with the refusal for newcomers while nothing can be written, and with None when
        that is over.
        """
        self._files = files
        self._outcomes = outcomes
        self._call_soon_threadsafe = call_soon_threadsafe
        self._on_state = on_state
        self._waiting: deque[_Entry] = deque()
        self._paced: dict[tuple[str, str], int] = {}
        """How often each kind of refusal or denial of a client has occurred this minute."""
        self._minute = 0.0
        self._lost = 0
        """How many entries were lost so far; `_said`: how many of them entries have reported."""
        self._said = 0
        self._work = threading.Event()
        self._ends = False
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)

    def start(self, **facts: object) -> None:
        """Begin to write; the first entry records that the broker has started."""
        self._thread.start()
        self.told("started", **facts)

    def close(self) -> None:
        """Write what is waiting, within some seconds."""
        self._say_again(time.monotonic())
        self.told("stopped")
        self._ends = True
        self._work.set()
        self._thread.join(_CLOSING)
        if not self._thread.is_alive():
            self._files.close()

    def saw(self, event: Event) -> None:
        """Record what happened to a client."""
        what = event.what
        identity = "" if event.identity is None else str(event.identity)
        now = time.monotonic()
        if now - self._minute > _MINUTE or len(self._paced) >= _MOST_PACED:
            self._say_again(now)
        if what is Happened.DENIED:
            kind = event.detail.partition(":")[0]
            if event.times == 1 and self._too_often(identity or event.host, kind):
                return  # A single entry with the count is written once a minute.
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
        """Record something that does not concern a client; or that one is no operator."""
        if event == OPERATOR_REFUSED:  # Whoever has a certificate can cause that endlessly (rule 2).
            if (now := time.monotonic()) - self._minute > _MINUTE or len(self._paced) >= _MOST_PACED:
                self._say_again(now)
            host = without_port(str(facts["address"]))
            if self._too_often(str(facts["identity"]) or host, event):
                return
        self._add({"event": event, **{name: _short(value) for name, value in facts.items()}})

    def _add(self, facts: Mapping[str, Any]) -> None:
        waiting = self._waiting
        if len(waiting) >= _MOST_WAITING:
            if self._lost == self._said:
                self._on_state(_unavailable("entries arrive faster than they can be written"))
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
        """Record how many entries were left out in the past minute."""
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
            except Exception as error:  # noqa: BLE001 - after a defect, too, it has to be known that nothing is written
                if not failed:
                    self._tell_failed(error)
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

    def _tell_failed(self, error: Exception) -> None:
        if isinstance(error, OSError | ValueError | AuditError):
            detail = getattr(error, "strerror", None) or str(error)
            log.error("audit log cannot be written", code="AUDIT_FAILED", detail=detail)
        else:
            log.error("audit log cannot be written", code="AUDIT_FAILED", detail=_DEFECT, exc_info=error)
        self._tell(_unavailable("it cannot be written"))

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
        except RuntimeError:  # The loop is closed: the broker is ending, and admits nobody any more.
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
