"""Who has the lock of all writers is ended if it has said nothing between two looks, in the middle of sending."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest
from psycopg.pq import ExecStatus
from structlog.testing import capture_logs

from provisioning.store.loop_waits import LoopConnection
from provisioning.store.stalled import _SLEEP, end_stalled
from tests.support.broker_process import wait_until
from tests.support.postgresql import PostgresqlServer

LOCK = (7 << 32) + 5
_TAKE = "SELECT pg_advisory_lock({})"


class Looking(LoopConnection):
    """The connection of who has waited in vain; between its two looks something happens, and no second goes by."""

    happens: Callable[[], object]

    def execute(self, query: Any, *rest: Any, **options: Any) -> Any:
        if query != _SLEEP:
            return super().execute(query, *rest, **options)
        self.happens()
        return super().execute("SELECT 1")


class Sender:
    """Another session, which sends requests in parts."""

    def __init__(self, url: str, looking: Looking) -> None:
        self._looking = looking
        self.connection = psycopg.connect(url, autocommit=True)
        self._driver = self.connection.pgconn
        self.pid = self._driver.backend_pid

    def asks(self, text: str) -> None:
        """Say a whole request, and rest."""
        self.connection.execute(text.encode())

    def sends(self, text: str) -> None:
        """Say *text*, have it answered, and owe the end of the request."""
        if not self._driver.pipeline_status:
            self._driver.enter_pipeline_mode()
        self._driver.send_query_params(text.encode(), None)
        self._driver.send_flush_request()
        self._driver.flush()
        result = self._driver.get_result()
        assert result is not None
        assert result.status == ExecStatus.TUPLES_OK
        assert self._driver.get_result() is None
        wait_until(self._is_waited_for, "the server waits for the rest")

    def _is_waited_for(self) -> bool:
        waits = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND state = 'active' AND wait_event = 'ClientRead'"
        return self._looking.execute(waits, [self.pid]).fetchone() is not None

    @property
    def is_alive(self) -> bool:
        alive = "SELECT 1 FROM pg_stat_activity WHERE pid = %s"
        return self._looking.execute(alive, [self.pid]).fetchone() is not None

    def ends(self) -> None:
        """Be ended by the server, so that nothing of it is left when this returns."""
        self._looking.execute("SELECT pg_terminate_backend(%s, 0)", [self.pid])
        wait_until(lambda: not self.is_alive, "it is ended")


class Scene:
    """A database, who looks, and others who are connected to it."""

    def __init__(self, url: str, stack: ExitStack) -> None:
        self._url, self._stack = url, stack
        self.looking = stack.enter_context(Looking.connect(url, autocommit=True))
        self.looks = 0
        self.between(lambda: None)

    def between(self, happens: Callable[[], object]) -> None:
        def act() -> None:
            self.looks += 1
            happens()

        self.looking.happens = act

    def sender(self) -> Sender:
        made = Sender(self._url, self.looking)
        self._stack.callback(made.connection.close)
        return made


@pytest.fixture
def scene(postgresql: PostgresqlServer) -> Iterator[Scene]:
    with ExitStack() as stack:
        url = stack.enter_context(postgresql.database())
        yield Scene(url.replace("+psycopg", ""), stack)


def test_where_nobody_has_the_lock_there_is_nobody_to_end(scene: Scene) -> None:
    other = scene.sender()
    other.sends(_TAKE.format(LOCK + 1))
    assert end_stalled(scene.looking, LOCK) is True
    assert scene.looks == 0
    assert other.is_alive, "what it has is another lock"


def test_who_has_stopped_while_sending_is_ended_and_that_is_said(scene: Scene) -> None:
    stalled = scene.sender()
    stalled.sends(_TAKE.format(LOCK))
    with capture_logs() as logs:
        assert end_stalled(scene.looking, LOCK) is True
    assert scene.looks == 1
    wait_until(lambda: not stalled.is_alive, "its session is ended")
    assert [each["pid"] for each in logs] == [stalled.pid]


def test_who_rests_between_two_requests_is_left_to_the_servers_own_clocks(scene: Scene) -> None:
    resting = scene.sender()
    resting.asks(_TAKE.format(LOCK))
    assert end_stalled(scene.looking, LOCK) is False
    assert scene.looks == 0
    resting.asks("BEGIN")
    assert end_stalled(scene.looking, LOCK) is False
    assert resting.is_alive


@pytest.mark.parametrize("then", ["goes on sending", "comes to its end"])
def test_who_has_said_anything_between_the_looks_is_left_alone(scene: Scene, then: str) -> None:
    slow = scene.sender()
    slow.sends(_TAKE.format(LOCK))

    def speaks() -> None:
        slow.sends("SELECT 1")
        if then == "comes to its end":
            slow.connection.pgconn.pipeline_sync()
            slow.connection.pgconn.flush()
            slow.connection.pgconn.get_result()

    scene.between(speaks)
    with capture_logs() as logs:
        assert end_stalled(scene.looking, LOCK) is False
    assert scene.looks == 1
    assert slow.is_alive
    assert logs == []


@pytest.mark.parametrize("followed", [False, True])
def test_where_another_has_ended_it_meanwhile_the_lock_may_be_waited_for_again(scene: Scene, followed: bool) -> None:
    """Whoever has the lock now has not had it for long, though it be sending: it is not ended for the other."""
    stalled, next_one = scene.sender(), scene.sender()
    stalled.sends(_TAKE.format(LOCK))

    def ended() -> None:
        stalled.ends()
        if followed:
            next_one.sends(_TAKE.format(LOCK))

    scene.between(ended)
    with capture_logs() as logs:
        assert end_stalled(scene.looking, LOCK) is True
    assert next_one.is_alive
    assert logs == []
