"""The process: starts or says why not, stops in order, and survives what can be survived."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest

from broker.mqtt.codes import ReasonCode
from broker.process.stopping import STOP_SECONDS
from provisioning.pki.open_to_all import told_of
from provisioning.program.build import build_identity
from provisioning.program.version import product_version
from tests.support import programs
from tests.support.broker_process import BrokerProcess, wait_until
from tests.support.crl import crl
from tests.support.descriptors import a_shell_that_allows, allowed
from tests.support.on_a_terminal import exit_code, first_line, on_a_terminal
from tests.support.pki import Pki
from tests.support.slow_names import SLOW_HOST, SlowNames
from tests.support.tls_client import Ended, TlsClient
from tests.support.web import WebServer
from tests.support.wire import V311

# Starting and stopping


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_in_order(pki: Pki, tmp_path: Path, number: signal.Signals) -> None:
    with BrokerProcess.with_files(tmp_path / "b", pki).afresh() as broker, contextlib.ExitStack() as stack:
        anchors = tmp_path / "b" / "anchors.pem"
        new = stack.enter_context(TlsClient(broker.port, anchors, pki.device("new").credential))
        old = stack.enter_context(TlsClient(broker.port, anchors, pki.device("old").credential, version=V311))
        silent = stack.enter_context(TlsClient(broker.port, anchors, pki.device("silent").credential))
        stack.enter_context(socket.create_connection(("127.0.0.1", broker.port)))
        new.connect(client_id="new")
        old.connect(client_id="old")
        started = time.monotonic()
        assert broker.stop(number) == 0
        assert time.monotonic() - started < 15
        ((served,), (_,)) = broker.events("serving"), broker.events("stopping")
        assert (served["version"], served["build"]) == (product_version(), build_identity())
        assert served["listeners"] == [f"mqtts://127.0.0.1:{broker.port}"]
        farewell = new.farewell()
        assert farewell.reason_code is ReasonCode.SERVER_SHUTTING_DOWN
        assert [name for name, _ in farewell.properties.user_properties] == ["retry-after"]
        assert old.expect_end() is None
        with contextlib.suppress(Ended):
            silent.next_packet()
    assert "Traceback" not in broker.log


def test_it_ends_in_order_with_its_terminal_and_reloads_while_that_is_there(pki: Pki, tmp_path: Path) -> None:
    broker = BrokerProcess.with_files(tmp_path / "b", pki)
    command = [sys.executable, "-m", "broker", *broker.arguments]
    with on_a_terminal(command, broker.environment, tmp_path / "b" / "broker.log") as (pid, terminal):
        assert first_line(terminal).startswith(b"fleet-broker ready")
        os.kill(pid, signal.SIGHUP)
        wait_until(lambda: broker.events("RELOAD_UNCHANGED"), "the settings are read anew")
        os.close(terminal)
        assert exit_code(pid) == 0
    assert "the terminal is gone" in broker.log


def test_where_sighup_is_ignored_as_by_nohup_it_outlives_its_terminal(pki: Pki, tmp_path: Path) -> None:
    broker = BrokerProcess.with_files(tmp_path / "b", pki)
    deaf = ["/bin/sh", "-c", 'trap "" HUP; exec "$@"', "sh"]  # nohup would move the ready line into a file.
    command = [*deaf, sys.executable, "-m", "broker", *broker.arguments]
    with on_a_terminal(command, broker.environment, tmp_path / "b" / "broker.log") as (pid, terminal):
        assert first_line(terminal).startswith(b"fleet-broker ready")
        os.close(terminal)
        wait_until(lambda: broker.events("RELOAD_UNCHANGED"), "the hang-up reloads, as any")
        os.kill(pid, signal.SIGTERM)
        assert exit_code(pid) == 0
    assert "the terminal is gone" not in broker.log


def test_names_that_are_being_looked_up_keep_it_from_no_other_and_not_from_its_end(pki: Pki, tmp_path: Path) -> None:
    """More of them than uvloop, or asyncio, has threads for."""
    names = SlowNames(tmp_path)
    with WebServer() as web:
        web.pages["/crl"] = crl(pki.issuing)
        urls = [f"http://{number}.{SLOW_HOST}/list.crl" for number in range(12)]
        urls.append(f"http://localhost:{web.url.rpartition(':')[2]}/crl")
        broker = BrokerProcess.with_lists(tmp_path / "b", pki, crl_urls=",".join(urls)).afresh()
        broker.environment |= names.environment
        broker.launch()
        wait_until(lambda: names.asked, "the look-up")
        wait_until(lambda: broker.events("CRL_CURRENT"), "a list whose server's name is known")
    started = time.monotonic()
    assert broker.stop() == 0
    assert time.monotonic() - started < STOP_SECONDS / 2
    assert not broker.events("STOP_GAVE_UP")
    assert "Traceback" not in broker.log


def test_a_certificate_of_its_own_that_has_ended_is_said_at_the_start(pki: Pki, tmp_path: Path) -> None:
    broker = BrokerProcess.with_files(tmp_path / "b", pki)
    with broker:
        assert not broker.events("OWN_CERTIFICATE_DATES")
    ended = pki.now - timedelta(days=1)
    pki.broker(not_before=ended - timedelta(days=1), not_after=ended).write(tmp_path / "b")
    with broker:
        (said,) = broker.events("OWN_CERTIFICATE_DATES")
        assert said["level"] == "error"
        assert f"{ended:%Y-%m-%d %H:%M:%S} UTC" in said["detail"]


def test_a_key_that_everybody_may_read_is_said_and_used(pki: Pki, tmp_path: Path) -> None:
    broker = BrokerProcess.with_files(tmp_path / "b", pki)
    (key,) = (tmp_path / "b").glob("*.key")
    with broker:
        assert not broker.events("KEY_OPEN")
    key.chmod(0o644)
    with broker:
        (said,) = broker.events("KEY_OPEN")
        assert (said["level"], said["detail"]) == ("warning", told_of(key))
    tested = programs.run("broker", [*broker.arguments, "--test-config"], broker.environment, timeout=60)
    assert (tested.returncode, tested.stdout) == (0, "the settings are valid\n")
    assert tested.stderr == f"fleet-broker: warning: keyfile: {told_of(key)}\n"


def test_it_starts_again_after_kill_9_and_on_the_same_port(pki: Pki, tmp_path: Path) -> None:
    broker = BrokerProcess.with_files(tmp_path / "b", pki)
    anchors = tmp_path / "b" / "anchors.pem"
    holder = pki.device("meter")
    with broker, TlsClient(broker.port, anchors, holder.credential) as client:
        client.connect(client_id="meter")
        assert broker.stop(signal.SIGKILL) == -signal.SIGKILL
        with pytest.raises(Ended):
            client.next_packet()
        broker.arguments[broker.arguments.index("--port") + 1] = str(broker.port)
        broker.start()
        with TlsClient(broker.port, anchors, holder.credential) as again:
            again.connect(client_id="meter")


def test_a_port_that_is_taken_is_said(pki: Pki, tmp_path: Path) -> None:
    broker = BrokerProcess.with_files(tmp_path / "b", pki)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        broker.arguments[broker.arguments.index("--port") + 1] = str(port)
        code, said = broker.fail()
    assert code == 1
    assert f"fleet-broker: port: 127.0.0.1 port {port} cannot be listened on: Address already in use; " in said
    assert "Traceback" not in said


def test_a_port_that_is_taken_is_said_with_the_file_that_names_it(pki: Pki, tmp_path: Path) -> None:
    broker = BrokerProcess.with_files(tmp_path / "b", pki)
    given = broker.arguments.index("--port")
    del broker.arguments[given : given + 2]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = tmp_path / "broker.toml"
        settings.write_text(f"port = {port}\n")
        broker.arguments += ["--config", str(settings)]
        code, said = broker.fail()
    assert code == 1
    assert f"fleet-broker: {settings}: port: 127.0.0.1 port {port} cannot be listened on: Address already" in said


def test_settings_that_cannot_be_used_are_exit_code_2(pki: Pki, tmp_path: Path) -> None:
    broker = BrokerProcess.with_files(tmp_path / "b", pki, "--host", "0.0.0.0")
    code, said = broker.fail()
    assert (code, said) == (
        2,
        "fleet-broker: host: 0.0.0.0 is not a loopback address; set unsafe_public_listener to allow it\n",
    )


def test_a_key_that_does_not_fit_is_said(pki: Pki, tmp_path: Path) -> None:
    broker = BrokerProcess.with_files(tmp_path / "b", pki)
    pki.broker("other").write(tmp_path, "other")
    broker.arguments[broker.arguments.index("--keyfile") + 1] = str(tmp_path / "other.key")
    code, said = broker.fail()
    assert code == 1
    assert "do not belong together" in said
    assert "Traceback" not in said


# Limits of the machine


def test_running_out_of_descriptors_is_no_end_and_no_busy_loop(pki: Pki, tmp_path: Path) -> None:
    broker = BrokerProcess.with_files(tmp_path / "b", pki, limits__handshake_timeout=600).afresh()
    with contextlib.ExitStack() as stack:
        with a_shell_that_allows(512):
            stack.enter_context(broker)
        anchors = tmp_path / "b" / "anchors.pem"
        soft, hard = allowed(broker.pid)
        assert soft == hard, "it takes what its user may have"
        assert resource.prlimit(broker.pid, resource.RLIMIT_CORE) == (0, 0), "its key is dumped nowhere"
        resource.prlimit(broker.pid, resource.RLIMIT_NOFILE, (40, 40))
        holder = pki.device("meter").credential
        with TlsClient(broker.port, anchors, holder) as client:
            client.connect(client_id="meter")
            strangers = [socket.create_connection(("127.0.0.1", broker.port)) for _ in range(60)]
            try:
                wait_until(lambda: broker.events("ACCEPT_FAILED"), "the broker runs out of descriptors")
                used, told = broker.cpu_seconds(), len(broker.events("ACCEPT_FAILED"))
                for _ in range(10):
                    client.check_alive()
                    time.sleep(0.1)  # Not for luck: it is this second's processor time that is judged.
                assert broker.cpu_seconds() - used < 0.5
                assert len(broker.events("ACCEPT_FAILED")) - told < 5
            finally:
                for stranger in strangers:
                    stranger.close()
            with TlsClient(broker.port, anchors, pki.device("late").credential) as late:
                late.connect(client_id="late")
            client.check_alive()


def test_an_empty_broker_is_ready_after_less_than_two_seconds_of_processor_time(tmp_path: Path, pki: Pki) -> None:
    """Processor time, not the clock's: what it waits for on a busy machine is not the broker's."""
    with BrokerProcess.with_files(tmp_path / "b", pki).afresh() as broker:
        assert (broker.dir / "state" / "broker.db").exists()
        assert broker.cpu_seconds() < 2
