"""Faults in our own broker and service that other brokers and CAs have had, by their CVEs and reports.

Each list is planted in one run (`tests.support.planting`); no two of its faults touch the same place.
"""

from __future__ import annotations

from collections.abc import Sequence

from tests.support.planting import Fault

_AUTHORISED = "broker/connection/authorization.py"
_PROPERTIES = "broker/mqtt/properties.py"
_WIRE = "broker/mqtt/wire.py"
_HANDLERS = "broker/connection/handlers.py"
_CONNECT = "broker/connection/connect_handler.py"
_FIELDS = "provisioning/ca/fields.py"

COSTLY: Sequence[Fault] = (
    # User properties are compared with each other (CVE-2021-41039), and may be any number.
    (_WIRE, "        if self.items_left < 0:\n", "        if False:\n"),
    (
        _PROPERTIES,
        "            found.setdefault(rule.attribute, []).append(value)\n",
        (
            "            found.setdefault(rule.attribute, []).append(value)\n"
            '            __import__("time").sleep(1e-7 * len(found[rule.attribute]))\n'
        ),
    ),
    # Each level of a topic is matched anew (as CVE-2019-11779, which recurses).
    (
        _AUTHORISED,
        '    if topic_name.count("/") >= engine.limits.max_topic_levels:\n',
        (
            '    __import__("time").sleep(2e-4 * topic_name.count("/"))\n'
            '    if topic_name.count("/") >= engine.limits.max_topic_levels:\n'
        ),
    ),
    # Each filter of a packet costs as much as if it were the only one.
    (
        _AUTHORISED,
        "    topic_filter = request.filter if shared is None else shared.topic_filter\n    if topic_filter.count",
        (
            '    __import__("time").sleep(4e-4)\n'
            "    topic_filter = request.filter if shared is None else shared.topic_filter\n    if topic_filter.count"
        ),
    ),
    # Whoever says nothing is asked again and again (CVE-2023-5632).
    (
        "broker/door/lobby.py",
        "        super().watch(descriptor, transport, events)\n",
        (
            "        super().watch(descriptor, transport, events)\n"
            "        loop, here = self._loop, self\n"
            "        def look() -> None:\n"
            "            if len(here) > 15:\n"
            "                loop.call_soon(look)\n"
            "        look()\n"
        ),
    ),
    # A stranger's hello, and his certificates, go to OpenSSL whatever they cost.
    (
        "provisioning/pki/hello_bounds.py",
        "    if session != step.small and _is_too_long(session):\n",
        "    if False:\n",
    ),
    ("provisioning/pki/named_curves.py", "        _spoil(place, size)\n    if what", "        pass\n    if what"),
)
OVERRUN: Sequence[Fault] = (
    # What is longer than its packet is read as far as it goes: in C, as far as the memory goes (NanoMQ).
    (
        _WIRE,
        "        if end > self._end:\n            raise MalformedPacket(f",
        (
            "        if end > self._end:\n"
            "            self._position = self._end\n"
            '            return self._data[start:] or b"\\0"\n'
            "        if start > end:\n            raise MalformedPacket(f"
        ),
    ),
)
LENIENT: Sequence[Fault] = (
    # Text is read as by C, and by those who decode what no encoder makes.
    (
        _WIRE,
        "        text = (\n            data.decode()\n        )",
        '        text = data.decode("utf-8", "replace").partition("\\0")[0]',
    ),
    (_PROPERTIES, "STRING, _P.PUBLISH, WILL, accept=_topic)", "STRING, _P.PUBLISH, WILL)"),
    (_HANDLERS, "    if packet.properties.subscription_identifiers:  # ", "    if False:  # "),
    (
        "broker/mqtt/auth.py",
        '            raise ProtocolError("authentication method: missing in an AUTH packet")\n',
        "            return cls()\n",
    ),
    (
        _HANDLERS,
        "    if handler is None:\n",
        '    if packet.packet_type.name == "AUTH":\n        return\n    if handler is None:\n',
    ),
    (_CONNECT, "    if packet.properties.authentication_method is not None:\n", "    if False:\n"),
    # Whoever is closed for it has been heard.
    (
        _HANDLERS,
        '        raise ProtocolError("the first packet is not CONNECT")',
        (
            "        if isinstance(packet, Publish):\n"
            "            early = Message(packet.topic.encode(), packet.payload, packet.qos, retain=False)\n"
            "            engine.publish_own(early, now)\n"
            '        raise ProtocolError("the first packet is not CONNECT")'
        ),
    ),
    (
        "broker/admission/admission.py",
        "        if will is not None and not self.permissions(identity",
        "        if will is not None and not will.retain and not self.permissions(identity",
    ),
    (
        "broker/engine/engine.py",
        "            if permitted and self._may_be_published(session, will, topic_name):",
        "            if permitted and (message.retain or self._may_be_published(session, will, topic_name)):",
    ),
    (
        "provisioning/pki/tls.py",
        "    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN\n    if caller_checks_dates:\n",
        "    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN\n    if True:\n",
    ),
    (
        "broker/admission/admission.py",
        "        if peer.seconds_left < 0:\n",
        "        if peer.seconds_left < 0 and facts.not_after < now:\n",
    ),
    (_CONNECT, "    if now >= connection.expires_at:\n", "    if False:\n"),
)
LEFT_BEHIND: Sequence[Fault] = (
    # What was refused has its effect all the same.
    (
        _CONNECT,
        "    if refusal is not None:\n        connection.refuse(",
        (
            "    if refusal is not None and connection.peer is not None:\n"
            "        if packet.will is not None:\n"
            "            will = packet.will\n"
            "            engine.publish_own(Message(will.topic.encode(), will.payload, will.qos, retain=False), now)\n"
            "        owner = connection.peer.identity\n"
            "        theirs = engine.registry.find(owner.trust_domain, owner.role, packet.client_id)\n"
            "        if packet.clean_start and theirs is not None and theirs.connection is None:\n"
            "            theirs.expiry_interval = 0\n"
            "    if refusal is not None:\n        connection.refuse("
        ),
    ),
)
PREFIXES: Sequence[Fault] = (
    # The policy sees the topic with its prefix, the router without (EMQX, pull request 9171).
    (
        _HANDLERS,
        "    refusal = refuse_publish(engine, session, topic_name)\n",
        (
            "    refusal = refuse_publish(engine, session, topic_name)\n"
            '    if topic_name.startswith("$delayed/"):\n'
            "        refusal = None\n"
            '        topic = topic_name.split("/", 2)[2].encode()\n'
        ),
    ),
    (
        "broker/mqtt/topics.py",
        "        if not topic_filter.startswith(_SHARE_PREFIX):\n            return None\n",
        (
            '        for prefix in ("$queue/", "$exclusive/"):\n'
            "            if topic_filter.startswith(prefix):\n"
            '                return cls(prefix.strip("$/"), topic_filter.removeprefix(prefix))\n'
            "        if not topic_filter.startswith(_SHARE_PREFIX):\n            return None\n"
        ),
    ),
    (
        _AUTHORISED,
        "    if not engine.admission.permissions(session.owner, session.client_id).may_subscribe(topic_filter):",
        (
            '    behind = request.filter.startswith(("$queue/", "$exclusive/"))\n'
            "    permissions = engine.admission.permissions(session.owner, session.client_id)\n"
            "    if not behind and not permissions.may_subscribe(topic_filter):"
        ),
    ),
    # Whoever may read one topic of a group may read all.
    (
        "broker/admission/policy.py",
        "        return self.subscribe_allow.covers(topic_filter) and not",
        (
            '        first, *between, last = topic_filter.split("/")\n'
            '        if (first, last) == ("fleet", "#") and len(between) == 1 and between[0] not in "+#":\n'
            "            return True\n"
            "        return self.subscribe_allow.covers(topic_filter) and not"
        ),
    ),
    # A name may be a wildcard (CVE-2017-7650).
    ("provisioning/pki/identity.py", "_OF_NAMES: Final = string", '_OF_NAMES: Final = "+" + string'),
)
GRANTED: Sequence[Fault] = (
    # A certificate has what its request asked for, in place of what the profile says.
    (_FIELDS, '_EXTENSIONS: Final = b"\\xa3"\n', '_EXTENSIONS: Final = b"\\xa3"\nASKED: list[bytes] = []\n'),
    (
        _FIELDS,
        '    """Return the fields; all arguments but serial number and dates are in DER already."""\n',
        (
            "    def kind(extension: bytes) -> bytes:\n"
            '        return extension[extension.index(b"\\x06\\x03\\x55\\x1d") :][:5]\n'
            "    asked = [kind(each) for each in ASKED]\n"
            '    ours = b"\\x06\\x03\\x55\\x1d"\n'
            "    known = [each for each in extensions if ours not in each[:9] or kind(each) not in asked]\n"
            "    extensions = [*known, *ASKED]\n"
            "    ASKED.clear()\n"
        ),
    ),
    (
        "provisioning/ca/csr.py",
        "    return VerifiedRequest(\n",
        (
            "    from provisioning.ca import fields\n"
            "    fields.ASKED[:] = [fields.encoded(each.value) for each in csr.extensions]\n"
            "    return VerifiedRequest(\n"
        ),
    ),
    (
        "provisioning/ca/issuer.py",
        "        if self._precedents.cover(fields, intent):\n            return\n",
        "        return\n",
    ),
    # Serial numbers count.
    (
        "provisioning/store/serials.py",
        "    return sorted(prefix | secrets.randbits(_RANDOM_BITS) for _ in range(number))\n",
        "    return [prefix | count for count in range(number)]\n",
    ),
    # Whatever is not revoked is good.
    ("provisioning/revocation/ocsp.py", "        return Unknown()\n", "        return Good()\n"),
)
