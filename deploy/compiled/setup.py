"""Builds Fleetgate with its hot path compiled by mypyc: deploy/build-compiled copies this beside the packages.

What is compiled is the same Python that runs without it; nothing is written for the compiler, and what it gains is in
docs/performance.md. Everything else about the package is in pyproject.toml.
"""

import os

from mypyc.build import mypycify
from setuptools import setup

HOT = [
    "broker/admission/admission.py",
    "broker/admission/bundle_terms.py",
    "broker/admission/filter_template.py",
    "broker/admission/peer.py",
    "broker/admission/policy.py",
    "broker/admission/status.py",
    "broker/admission/freshness.py",
    "broker/admission/guard.py",
    "broker/answers.py",
    "broker/authorization.py",
    "broker/client_life.py",
    "broker/coalescing.py",
    "broker/connect_handler.py",
    "broker/connection.py",
    "broker/connection_rate.py",
    "broker/crowd.py",
    "broker/history.py",
    "broker/mqtt/filter_set.py",
    "provisioning/pki/address_key.py",
    "provisioning/pki/certificate_reader.py",
    "provisioning/pki/extension.py",
    "provisioning/pki/identity.py",
    "provisioning/pki/handshake_bounds.py",
    "provisioning/pki/key_updates.py",
    "provisioning/pki/resumption.py",
    "provisioning/pki/revocation.py",
    "broker/deadlines.py",
    "broker/denials.py",
    "broker/doze.py",
    "broker/engine.py",
    "broker/exchange.py",
    "broker/farewell.py",
    "broker/handlers.py",
    "broker/metrics.py",
    "broker/mqtt/framing.py",
    "broker/mqtt/connect.py",
    "broker/mqtt/message.py",
    "broker/mqtt/packets.py",
    "broker/mqtt/properties.py",
    "broker/mqtt/publish.py",
    "broker/mqtt/topics.py",
    "broker/mqtt/wire.py",
    "broker/lifetime.py",
    "broker/listener.py",
    "broker/live.py",
    "broker/lobby.py",
    "broker/meter.py",
    "broker/most.py",
    "broker/poller.py",
    "broker/portions.py",
    "broker/replay.py",
    "broker/publisher_topics.py",
    "broker/readiness.py",
    "broker/reception.py",
    "broker/terms.py",
    "broker/routing/cached.py",
    "broker/routing/names.py",
    "broker/routing/router.py",
    "broker/routing/shared.py",
    "broker/routing/tree.py",
    "broker/session/aliases.py",
    "broker/session/framing.py",
    "broker/session/inflight.py",
    "broker/session/queue.py",
    "broker/session/registry.py",
    "broker/session/session.py",
    "broker/session_quota.py",
    "broker/store/batch.py",
    "broker/store/journal.py",
    "broker/slow_reader.py",
    "broker/strangers.py",
    "broker/tls_session.py",
    "broker/transport.py",
    "broker/transport_state.py",
    "broker/turn.py",
    "broker/waiting_room.py",
    "broker/welcome.py",
    "broker/work.py",
]
"""What runs once a message or once a connection, and needs no framework that looks into its classes."""

extensions = mypycify(HOT, opt_level=os.environ["OPTIMISED"], debug_level="0")
for each in extensions:
    # mypyc indents each function by more than the last, to hundreds of columns: this warning alone, and the places of
    # lines for a debugger, took the compiler longer than all else.
    each.extra_compile_args.append("-Wno-misleading-indentation")
setup(ext_modules=extensions)
