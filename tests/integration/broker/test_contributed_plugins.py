"""Every plugin that amqtt brings or has had contributed, unchanged, in a real broker; docs/plugins.md says which run.

The HTTP, shadow and ``$SYS`` plugins are in test_plugins.py. LDAP's needs a server that nobody has here.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import jwt
import pytest
from amqtt.contexts import Action
from amqtt.contrib.auth_db.managers import TopicManager, UserManager
from pwdlib.hashers.argon2 import Argon2Hasher

from broker.mqtt.codes import ReasonCode
from broker.mqtt.packets import Connack
from tests.support.broker_process import wait_until
from tests.support.pki import Held, Pki
from tests.support.plugins import plugged
from tests.support.tls_client import TlsClient
from tests.support.wire import connect_packet

TOPIC = "fleet/meters/meter-1"
SECRET = "0123456789abcdef0123456789abcdef"
NO = ReasonCode.NOT_AUTHORIZED


def answers(
    port: int,
    anchors: Path,
    held: Held,
    user: str | None,
    password: str,
    *,
    own: str = TOPIC,
    client_id: str = "meter-1",
) -> list[int]:
    """Return what a client meets: at CONNECT, and if it is let in, at a permitted PUBLISH, another one, a SUBSCRIBE."""
    with TlsClient(port, anchors, held.credential) as client:
        given = password.encode() if password else None
        client.send(connect_packet(client.version, client_id=client_id, username=user, password=given))
        connack = client.expect(Connack)
        if connack.reason_code:
            return [connack.reason_code]
        published = [client.publish(f"{own}/{name}", b"1", qos=1) for name in ("telemetry", "other")]
        subscribed = client.subscribe(f"{own}/cmd/#").reason_codes
        return [0, *(each.reason_code for each in published if each is not None), *subscribed]


def test_json_web_tokens_say_who_comes_in_and_what_he_may_do(tmp_path: Path, pki: Pki, anchors: Path) -> None:
    common = f'secret_key = "{SECRET}"'
    plugins = f"""
"amqtt.contrib.jwt.UserAuthJwtPlugin" = {{ {common}, user_claim = "sub" }}
"amqtt.contrib.jwt.TopicAuthJwtPlugin" = {{ {common}, publish_claim = "pub", subscribe_claim = "sub_to", receive_claim = "get" }}
"""  # noqa: E501
    claims = {"sub": "anna", "pub": [f"{TOPIC}/telemetry"], "sub_to": [f"{TOPIC}/cmd/#"], "get": [f"{TOPIC}/#"]}
    good = jwt.encode(claims, SECRET, "HS256")
    forged = jwt.encode(claims, SECRET[::-1], "HS256")
    device = pki.device("meter-1")
    with plugged(
        tmp_path, pki, plugins, log_level="debug", plugin_username="connect", plugin_sees_password=True
    ) as broker:
        assert answers(broker.port, anchors, device, "anna", good) == [0, 0, NO, 0]
        assert answers(broker.port, anchors, device, "anna", forged) == [NO]
        assert answers(broker.port, anchors, device, "berta", good) == [NO]
        assert answers(broker.port, anchors, device, None, "") == [NO]
    assert good not in broker.log


def test_without_the_password_the_token_s_topics_are_refused(tmp_path: Path, pki: Pki, anchors: Path) -> None:
    claims = 'publish_claim = "pub", subscribe_claim = "pub", receive_claim = "pub"'
    plugin = f'"amqtt.contrib.jwt.TopicAuthJwtPlugin" = {{ secret_key = "{SECRET}", {claims} }}'
    token = jwt.encode({"pub": ["#"]}, SECRET, "HS256")
    with plugged(tmp_path, pki, plugin) as broker:
        assert answers(broker.port, anchors, pki.device("meter-1"), "anna", token) == [0, NO, NO, NO]


async def filled(connection: str) -> None:
    async with UserManager(connection) as users, TopicManager(connection) as topics:
        await users.db_sync()
        await users.create_user_auth("anna", "s3cret")
        await topics.create_topic_auth("anna")
        await topics.add_allowed_topic("anna", f"{TOPIC}/telemetry", Action.PUBLISH)
        await topics.add_allowed_topic("anna", f"{TOPIC}/cmd/#", Action.SUBSCRIBE)
        await topics.add_allowed_topic("anna", f"{TOPIC}/#", Action.RECEIVE)


def test_users_and_topics_come_from_a_database(tmp_path: Path, pki: Pki, anchors: Path) -> None:
    connection = f"sqlite+aiosqlite:///{tmp_path}/users.db"
    asyncio.run(filled(connection))
    plugins = "\n".join(
        f'"amqtt.contrib.auth_db.{name}AuthDBPlugin" = {{ connection = "{connection}" }}' for name in ("User", "Topic")
    )
    device = pki.device("meter-1")
    with plugged(tmp_path, pki, plugins, plugin_username="connect") as broker:
        assert answers(broker.port, anchors, device, "anna", "s3cret") == [0, 0, NO, 0]
        assert answers(broker.port, anchors, device, "anna", "wrong") == [NO]
        assert answers(broker.port, anchors, device, "berta", "s3cret") == [NO]
    assert "s3cret" not in broker.log


def test_users_come_from_a_file_and_topics_from_a_table(tmp_path: Path, pki: Pki, anchors: Path) -> None:
    passwords = tmp_path / "passwords"
    passwords.write_text(f"anna:{Argon2Hasher().hash('s3cret')}\n")
    acl = f'publish_acl = {{ anna = ["{TOPIC}/telemetry"] }}, acl = {{ anna = ["{TOPIC}/cmd/#"] }}'
    plugins = f"""
"amqtt.plugins.authentication.FileAuthPlugin" = {{ password_file = "{passwords}" }}
"amqtt.plugins.topic_checking.TopicAccessControlListPlugin" = {{ {acl} }}
"amqtt.plugins.topic_checking.TopicTabooPlugin" = {{}}
"amqtt.plugins.logging_amqtt.EventLoggerPlugin" = {{}}
"amqtt.plugins.logging_amqtt.PacketLoggerPlugin" = {{}}
"""
    device = pki.device("meter-1")
    with plugged(tmp_path, pki, plugins, plugin_username="connect", log_level="debug") as broker:
        assert answers(broker.port, anchors, device, "anna", "s3cret") == [0, 0, NO, 0]
        assert answers(broker.port, anchors, device, "anna", "wrong") == [NO]
        assert broker.events("plugin says", logger="fleetgate.plugins.EventLoggerPlugin")
        wait_until(lambda: broker.events("plugin says", logger="fleetgate.plugins.PacketLoggerPlugin"), "packets")


def test_amqtt_s_certificates_are_understood_where_a_bundle_says_whom_they_name(
    tmp_path: Path, pki: Pki, anchors: Path
) -> None:
    """Its identity has no group: ``spiffe://<domain>/device/<name>``; ours, with one, it does not know."""
    theirs = Pki()
    pattern = "group = 'amqtt'\npattern = 'spiffe://amqtt\\.example/device/(?P<name>[a-z0-9-]+)'\n"
    roots = tmp_path / "roots"
    roots.mkdir()
    for name, each in (("ours", pki), ("theirs", theirs)):
        (roots / f"{name}.pem").write_text(each.anchors)
    bundles = "".join(
        f'\n[[trust]]\nname = "{name}"\nanchors = ["{roots}/{name}.pem"]\nunsafe_no_revocation = true\n{more}'
        for name, more in (
            ("ours", ""),
            ("theirs", f'trust_domain = "amqtt.example"\n[[trust.identity]]\nsource = "san-uri"\n{pattern}'),
        )
    )
    plugin = '"amqtt.contrib.cert.UserAuthCertPlugin" = { uri_domain = "amqtt.example" }\n' + bundles
    with plugged(tmp_path, pki, plugin) as broker:
        held = theirs.device("m-1", uris=["spiffe://amqtt.example/device/m-1"])
        met = answers(broker.port, anchors, held, None, "", own="fleet/amqtt/m-1", client_id="m-1")
        assert met == [0, 0, 0, 0]
        assert answers(broker.port, anchors, pki.device("meter-1"), None, "") == [NO]
        assert broker.events("REFUSED_BY_PLUGIN", plugin="UserAuthCertPlugin", client="meter-1")


DJANGO = """
import django
from django.conf import settings

settings.configure(
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "amqtt.contrib.django"],
    DATABASES={{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": "{database}"}}}},
    USE_TZ=True,
)
django.setup()

from amqtt.contrib.django.plugins import DjangoAuthPlugin, UserTopicACLPlugin
"""
ISSUE = """
import fleet_plugins
from django.core.management import call_command
from django.contrib.auth.models import User
from amqtt.contrib.django.models import MqttToken

call_command("migrate", verbosity=0)
user = User.objects.create_user("anna")
token, raw = MqttToken.issue(user)
print(user.pk, raw)
"""
DJANGO_POLICY = """
[role.device]
publish.allow = ["fleet/{group}/{device}/#"]
subscribe.allow = ["users/#"]
"""


def test_django_s_tokens_let_in_and_scope_topics(tmp_path: Path, pki: Pki, anchors: Path) -> None:
    plugins = '"fleet_plugins.DjangoAuthPlugin" = {}\n"fleet_plugins.UserTopicACLPlugin" = {}'
    module = DJANGO.format(database=tmp_path / "django.db")
    broker = plugged(tmp_path, pki, plugins, module, plugin_username="connect")
    (tmp_path / "policy.toml").write_text(DJANGO_POLICY)
    issued = subprocess.run(
        [sys.executable, "-c", ISSUE],
        env={**os.environ, "PYTHONPATH": broker.environment["PYTHONPATH"]},
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    user, token = issued.stdout.split()
    with broker, TlsClient(broker.port, anchors, pki.device("meter-1").credential) as client:
        assert client.connect(client_id="meter-1", username=user, password=token.encode()).reason_code == 0
        granted = client.subscribe(f"users/{user}/updates/#", "users/another/updates/#").reason_codes
        assert tuple(granted) == (ReasonCode.GRANTED_QOS_0, NO)
        assert answers(broker.port, anchors, pki.device("meter-2"), user, "guessed", client_id="meter-2") == [NO]
    assert token not in broker.log


@pytest.mark.parametrize("kept", [False, True])
def test_amqtt_s_persistence_starts_empty_and_ends_the_start_with_a_session(
    tmp_path: Path, pki: Pki, anchors: Path, kept: bool
) -> None:
    """It takes itself for the only one that keeps sessions: where the broker has one at its start, it gives up."""
    plain = plugged(tmp_path, pki, "", persistence=True)
    if kept:
        with plain as broker, TlsClient(broker.port, anchors, pki.device("meter-1").credential) as client:
            client.connect(client_id="meter-1", session_expiry_interval=600)
            client.subscribe(f"{TOPIC}/cmd/#", qos=1)
    database = f"sqlite+aiosqlite:///{tmp_path}/persistence.db"
    plugin = f'"amqtt.contrib.persistence.SessionDBPlugin" = {{ connection = "{database}" }}'
    broker = plugged(tmp_path, pki, plugin)
    if kept:
        try:
            with pytest.raises(AssertionError, match="broker shouldn't have any"):
                broker.start()
        finally:
            broker.stop()
    else:
        with broker:
            met = answers(broker.port, anchors, pki.device("meter-1"), None, "")
        assert met[0] == 0


BLOCKS = """
import pathlib, time
from amqtt.plugins.base import BaseAuthPlugin

class Sleeps(BaseAuthPlugin):
    async def authenticate(self, *, session):
        until = time.monotonic() + 30
        while not pathlib.Path("{awake}").exists() and time.monotonic() < until:
            time.sleep(0.01)
        return True
"""


def test_a_plugin_that_blocks_the_loop_is_named_while_it_does(tmp_path: Path, pki: Pki, anchors: Path) -> None:
    awake = tmp_path / "awake"
    with (
        plugged(tmp_path, pki, '"fleet_plugins.Sleeps" = {}', BLOCKS.format(awake=awake)) as broker,
        TlsClient(broker.port, anchors, pki.device("meter-1").credential) as client,
    ):
        client.send(connect_packet(client.version, client_id="meter-1"))
        (held,) = wait_until(lambda: broker.events("PLUGIN_BLOCKS"), "the thread's word")
        assert (held["level"], held["plugin"], held["hook"]) == ("error", "Sleeps", "authenticate")
        awake.touch()
        assert client.expect(Connack).reason_code == 0, "late, but it is the answer"
        blocked = broker.events("PLUGIN_BLOCKS")[-1]
    assert (blocked["level"], blocked["plugin"], blocked["hook"]) == ("warning", "Sleeps", "authenticate")
    assert blocked["milliseconds"] >= 1000
