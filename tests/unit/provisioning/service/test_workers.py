"""The supervisor by itself, with workers that do nothing but live and die: each test in an interpreter of its own."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys

import pytest

from tests.support.programs import REPOSITORY

PATIENCE = 60
PREAMBLE = """
import os, signal, sys, time
from provisioning.config import Settings
from provisioning.connections.listening import bound_for
from provisioning.program.logs import configure_logging
from provisioning.service.workers import Supervisor

configure_logging()
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # The tests may run under nohup.

def say(*words):  # In one piece: several processes write there.
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def live(place):
    while place.control.recv(1):
        pass

def supervise(work, count=2, **options):
    with bound_for(Settings(port=0, http_port=0), count) as places:
        return Supervisor(places, work, lambda: say("ready"), **options).run()
"""


def supervised(script: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )


def outcome(script: str) -> tuple[int, list[str], str]:
    """Return the exit code, the lines of stdout, and stderr."""
    with supervised(script) as process:
        out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out.splitlines(), err


def test_workers_that_all_die_again_and_again_end_the_service_with_the_last_one_s_code() -> None:
    code, said, logged = outcome("""
go, tell = os.pipe()

def work(place):
    if place.starts == 1:  # Each is ready once, and ends when both have been.
        place.say_ready()
        os.read(go, 1)
    else:
        say(place.number, place.starts)
    return 7

with bound_for(Settings(port=0, http_port=0), 2) as places:
    sys.exit(Supervisor(places, work, lambda: os.write(tell, b"go"), first_pause_seconds=0.001).run())
""")
    assert code == 7
    assert logged.count("worker cannot be kept running") == 1
    starts = {worker: [line for line in said if line.startswith(worker)] for worker in "12"}
    for worker, each in starts.items():
        assert each == [f"{worker} {number}" for number in range(2, len(each) + 2)]
    assert max(map(len, starts.values())) == 5


def test_a_place_that_cannot_be_filled_is_tried_for_as_long_as_another_worker_serves() -> None:
    code, said, logged = outcome("""
parent = os.getpid()

def work(place):
    if place.number == 1 or place.starts in (1, 12):
        place.say_ready()
    if place.number == 1:
        live(place)
        return 0
    say("start", place.starts)
    if place.starts == 12:  # Whatever was in its way is gone.
        os.kill(parent, signal.SIGTERM)
        live(place)
        return 0
    return 7

sys.exit(supervise(work, first_pause_seconds=0.001))
""")
    assert code == 0
    assert [line for line in said if line.startswith("start")] == [f"start {number}" for number in range(1, 13)]
    assert logged.count("worker ended, another takes its place") == 11
    assert "worker cannot be kept running" not in logged


def test_one_that_dies_before_all_are_ready_ends_the_service_and_the_second_waits_for_the_first() -> None:
    code, said, _ = outcome("""
def work(place):
    say("begins", place.number)
    if place.number == 1:
        time.sleep(0.2)
        say("prepared")
        place.say_ready()
        live(place)
        return 0
    os.kill(os.getpid(), signal.SIGKILL)

sys.exit(supervise(work))
""")
    assert code == 128 + signal.SIGKILL
    assert said == ["begins 1", "prepared", "begins 2"]


def test_an_exception_in_a_worker_is_shown_and_does_not_run_what_is_the_supervisors() -> None:
    code, said, shown = outcome(
        """
def work(place):
    raise LookupError("this is why")

try:
    sys.exit(supervise(work))
finally:
    say("the end of", "the supervisor" if os.getpid() == parent else "a worker")
""".replace("def work", "parent = os.getpid()\ndef work", 1)
    )
    assert code == 1
    assert said == ["the end of the supervisor"]
    assert "LookupError: this is why" in shown


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_a_worker_starts_ends_it_and_the_service_in_order(number: signal.Signals) -> None:
    with supervised("""
def work(place):
    say("begins")
    time.sleep(3600)

sys.exit(supervise(work))
""") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begins\n"
        process.send_signal(number)
        assert process.wait(PATIENCE) == 0


def test_workers_that_do_not_stop_are_killed_and_that_is_an_error() -> None:
    code, said, logged = outcome("""
from provisioning.service import workers
workers._STOP_SECONDS = 0.1

def work(place):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    place.say_ready()
    time.sleep(3600)

supervisor_pid = os.getpid()
with bound_for(Settings(port=0, http_port=0), 2) as places:
    sys.exit(Supervisor(places, work, lambda: os.kill(supervisor_pid, signal.SIGTERM)).run())
""")
    assert (code, said) == (1, [])
    # Said again for as long as a busy machine takes to end what was killed.
    assert "workers have not stopped in time" in logged


def test_a_worker_has_no_more_of_its_parents_files_than_its_own_listeners_and_its_sockets() -> None:
    code, said, _ = outcome("""
def work(place):
    names = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    say(sum(os.readlink(name).startswith("socket:") for name in names if os.path.lexists(name)))
    place.say_ready()
    live(place)
    return 0

parent = os.getpid()
with bound_for(Settings(port=0, http_port=0), 3) as places:
    sys.exit(Supervisor(places, work, lambda: os.kill(parent, signal.SIGTERM)).run())
""")
    # Two listeners, its control socket, its inbox, and where the two others are written to.
    assert (code, said) == (0, [str(2 + 1 + 1 + 2)] * 3)


def test_a_fork_that_fails_is_tried_again_like_a_worker_that_has_ended() -> None:
    code, said, logged = outcome("""
parent, fork, forks = os.getpid(), os.fork, 0

def some_fail():
    global forks
    forks += 1
    if forks in (3, 4):
        raise BlockingIOError(11, "Resource temporarily unavailable")
    return fork()

os.fork = some_fail

def work(place):
    place.say_ready()
    if place.number == 2 and place.starts == 1:
        return 7
    if place.starts > 1:
        say("start", place.starts)
        os.kill(parent, signal.SIGTERM)
    live(place)
    return 0

sys.exit(supervise(work, first_pause_seconds=0.001))
""")
    assert code == 0
    assert [line for line in said if line.startswith("start")] == ["start 4"]
    assert logged.count("worker cannot be forked") == 2


def test_one_hangup_reloads_once_whatever_else_happens_then() -> None:
    code, said, logged = outcome("""
parent = os.getpid()
go, tell = os.pipe()

def reloaded():
    say("reloaded")
    os.write(tell, b"x")

def work(place):
    place.say_ready()
    if place.number == 2 and place.starts == 1:
        os.kill(parent, signal.SIGHUP)
        os.read(go, 1)
    if place.number == 2 and place.starts < 4:
        return 7
    if place.starts == 4:
        os.kill(parent, signal.SIGTERM)
    live(place)
    return 0

sys.exit(supervise(work, on_hangup=reloaded, first_pause_seconds=0.001))
""")
    assert code == 0
    assert said.count("reloaded") == 1
    assert logged.count("worker ended, another takes its place") == 3


DYING = """
from provisioning.service import workers
parent = os.getpid()

def work(place):
    place.say_ready()
    if place.number == 2 and place.starts < 9:
        return 7
    if place.number == 2:
        os.kill(parent, signal.SIGTERM)
    live(place)
    return 0

"""
"""The second worker ends eight times as soon as it is ready."""


def pauses(logged: str) -> list[float]:
    return [float(pause) for pause in re.findall(r"\bpause\W+([\d.]+)", logged)]


def test_each_pause_is_twice_as_long_as_the_one_before_up_to_the_longest() -> None:
    code, _, logged = outcome(
        f"{DYING}workers._LONGEST_PAUSE = 0.004\nsys.exit(supervise(work, first_pause_seconds=0.001))"
    )
    assert code == 0
    assert pauses(logged) == [0.0, 0.001, 0.002, 0.004, 0.004, 0.004, 0.004, 0.004]


def test_who_has_run_for_long_is_replaced_at_once_however_often() -> None:
    code, _, logged = outcome(
        f"{DYING}workers._STEADY_SECONDS = 0.0\nsys.exit(supervise(work, first_pause_seconds=60.0))"
    )
    assert code == 0
    assert pauses(logged) == [0.0] * 8


@pytest.mark.parametrize(("ends", "code"), [((0, 0), 0), ((3, 0), 3), ((0, 5), 5)])
def test_one_that_fails_while_it_stops_is_why_the_service_has(ends: tuple[int, int], code: int) -> None:
    found, _, _ = outcome(f"""
def work(place):
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # A handler waits while a read begins just before it.
    place.say_ready()
    signal.sigwait([signal.SIGTERM])
    return {ends}[place.number - 1]

parent = os.getpid()
with bound_for(Settings(port=0, http_port=0), 2) as places:
    sys.exit(Supervisor(places, work, lambda: os.kill(parent, signal.SIGTERM)).run())
""")
    assert found == code


def test_while_a_place_is_empty_nobody_waits_there_for_an_answer() -> None:
    """The kernel divides connections among all who listen, and each listener is the supervisor's, too."""
    with supervised("""
def work(place):
    listener = place.listening.https
    listener.setblocking(True)
    listener.listen(100)
    place.say_ready()
    if place.number == 2:
        return 7
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"x")

with bound_for(Settings(port=0, http_port=0), 2) as places:
    say(places[0].https.getsockname()[1])
    sys.exit(Supervisor(places, work, lambda: None, first_pause_seconds=3600.0).run())
""") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        port = int(process.stdout.readline())
        while 15.0 not in pauses(process.stderr.readline()):  # The longest: it is not tried again so soon.
            assert process.poll() is None
        for _ in range(40):  # That all of them come to the other happens once in 10^12 times.
            with socket.create_connection(("127.0.0.1", port), PATIENCE) as connection:
                connection.settimeout(PATIENCE)
                assert connection.recv(1) == b"x"
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE)
        assert process.returncode == 0


def test_the_ports_are_free_when_workers_have_stopped_accepting_whatever_they_finish_then() -> None:
    with supervised("""
def work(place):
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
    place.listening.https.listen()
    place.say_ready()
    signal.sigwait({signal.SIGTERM})
    place.listening.close()
    say("closed", os.getpid())
    signal.sigwait({signal.SIGUSR1})
    return 0

with bound_for(Settings(port=0, http_port=0), 2) as places:
    say(places[0].https.getsockname()[1])
    sys.exit(Supervisor(places, work, lambda: say("ready")).run())
""") as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        closed = [process.stdout.readline().split() for _ in range(2)]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), PATIENCE)
        for _, pid in closed:
            os.kill(int(pid), signal.SIGUSR1)
        process.communicate(timeout=PATIENCE)
        assert process.returncode == 0


def test_each_worker_knows_at_which_places_there_is_a_process() -> None:
    """By a lock that ends with the process: its inbox is there without one as well."""
    _, said, logged = outcome("""
there, here = os.pipe()
gone, go = os.pipe()

def work(place):
    if place.number == 1:
        place.say_ready()
        os.read(there, 1)
        before = place.living.has(2)
        os.write(go, b"1")
        while place.living.has(2):
            time.sleep(0.001)
        say(place.living.has(1), before)
        os.kill(os.getppid(), signal.SIGTERM)
        live(place)
    elif place.starts == 1:
        place.say_ready()
        os.write(here, b"1")
        os.read(gone, 1)
        os._exit(7)
    else:  # The next one is forked after a pause.
        os._exit(7)
    return 0

sys.exit(supervise(work, first_pause_seconds=60))
""")
    assert "False True" in said, logged
