"""A batch with one of everything, a database's complete content, and sessions that wait for a journal."""

from __future__ import annotations

from broker.mqtt.message import Message, PersonalMessage
from broker.store.batch import Batch, Row
from broker.store.dispatch import Dispatch
from broker.store.sqlite import SqliteStore

SESSION = ("backend", "spiffe://d/service/backend", True, 60, None, *(None,) * 12)


TABLES = (
    *("sessions", "subscriptions", "messages", "deliveries", "remaining", "progress", "incoming", "retained"),
    "replayed",
)


def filled() -> Batch:
    batch = Batch()
    batch.sessions[1] = SESSION
    batch.subscriptions[1, "fleet/#"] = (2, False, False, 0, b"", 4)
    batch.messages[5] = (b"t", b"x", 2, False, b"", None)
    batch.deliveries[9] = dispatch(9, 5, 1, qos=2, share="$share/g/t")
    batch.deliveries[10] = dispatch(10, 5, 1, 1)
    batch.remaining[10] = 2
    batch.progress[9 * 64] = (77, True)
    batch.incoming[1, 3] = True
    batch.retained["t"] = (b"t", b"x", 1, True, b"", 12.5, "device/m", 3)
    batch.replayed[1, "fleet/#"] = [3]
    return batch


def dispatch(number: int, message: int, *sessions: int, qos: int = 1, share: str = "") -> Dispatch:
    """Return a dispatch of the message with that row, as it is written."""
    like = PersonalMessage(Message(b"t", b"x", qos), qos=qos, share=share)
    like.message.row = message
    made = Dispatch(number, like, sessions[0])
    for session in sessions[1:]:
        assert made.add(session, PersonalMessage(like.message, qos=qos, share=share))
    made.listed = made.left
    return made


def dispatched(batch: Batch) -> list[Row]:
    """Return what is to be written of the dispatches of *batch* as it is."""
    batch.seal()
    return [each.row() for each in batch.deliveries.values()]


def contents(store: SqliteStore) -> dict[str, list[tuple[object, ...]]]:
    return {table: store.rows(f"SELECT * FROM {table}") for table in TABLES}


class Ear:
    """A connection and its session in one."""

    def __init__(self) -> None:
        self.outbox: list[bytes] = []
        self.session: Ear | None = self
        self.closed_at: float | None = None
        self.resumed_at: float | None = None

    def flush(self) -> None: ...

    def unanswered(self, now: float) -> None:
        self.closed_at = now
        self.session = None

    def send_again(self, now: float) -> None:
        self.resumed_at = now


def stored(message: Message | None = None, qos: int = 1) -> PersonalMessage:
    return PersonalMessage(message or Message(b"t", b"x", qos), qos=qos)
