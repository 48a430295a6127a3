"""Builds Fleetgate with its hot path compiled by mypyc: deploy/build-compiled copies this beside the packages.

What is compiled is the same Python that runs without it; nothing is written for the compiler, and what it gains is in
docs/performance-in-detail.md. One thing cannot be said in Python, calling a function of C: that is Cython's, where
`ctypes` does it otherwise. Everything else about the package is in pyproject.toml.
"""

import os
import subprocess
from pathlib import Path

from Cython.Build import cythonize
from mypyc.build import mypycify
from setuptools import setup
from setuptools.command.build_ext import build_ext

HOT = [
    "broker/admission/admission.py",
    "broker/admission/bundle_terms.py",
    "broker/admission/filter_template.py",
    "broker/admission/peer.py",
    "broker/admission/path_ends.py",
    "broker/admission/policy.py",
    "broker/admission/proven_time.py",
    "broker/admission/status.py",
    "broker/admission/freshness.py",
    "broker/admission/guard.py",
    "broker/connection/answers.py",
    "broker/connection/authorization.py",
    "broker/connection/client_life.py",
    "broker/sockets/coalescing.py",
    "broker/connection/connect_handler.py",
    "broker/connection/connection.py",
    "broker/door/connection_rate.py",
    "broker/door/crowd.py",
    "broker/engine/history.py",
    "broker/mqtt/filter_set.py",
    "provisioning/pki/address_key.py",
    "provisioning/pki/certificate_reader.py",
    "provisioning/pki/tcp_state.py",
    "provisioning/pki/extension.py",
    "provisioning/pki/identity.py",
    "provisioning/pki/handshake_bounds.py",
    "provisioning/pki/hello_bounds.py",
    "provisioning/pki/key_shown.py",
    "provisioning/pki/key_updates.py",
    "provisioning/pki/named_curves.py",
    "provisioning/pki/resumed_exchange.py",
    "provisioning/pki/resumption.py",
    "provisioning/pki/revocation.py",
    "provisioning/pki/revocation_reason.py",
    "provisioning/pki/role.py",
    "provisioning/pki/openssl.py",
    "provisioning/pki/openssl_library.py",
    "provisioning/pki/stapling.py",
    "provisioning/pki/verified_path.py",
    "provisioning/program/host_and_port.py",
    "broker/engine/deadlines.py",
    "broker/engine/denials.py",
    "broker/sockets/doze.py",
    "broker/engine/engine.py",
    "broker/engine/handover.py",
    "broker/engine/exchange.py",
    "broker/connection/farewell.py",
    "broker/connection/handlers.py",
    "broker/metrics.py",
    "broker/mqtt/framing.py",
    "broker/mqtt/connect.py",
    "broker/mqtt/message.py",
    "broker/mqtt/packets.py",
    "broker/mqtt/properties.py",
    "broker/mqtt/publish.py",
    "broker/mqtt/topics.py",
    "broker/mqtt/wire.py",
    "broker/connection/lifetime.py",
    "broker/door/listener.py",
    "broker/engine/live.py",
    "broker/door/lobby.py",
    "broker/connection/meter.py",
    "broker/door/ranking.py",
    "broker/sockets/kernel_buffer.py",
    "broker/sockets/lingering.py",
    "broker/sockets/poller.py",
    "broker/connection/portions.py",
    "broker/engine/replay.py",
    "broker/engine/returning.py",
    "broker/engine/publisher_topics.py",
    "broker/sockets/readiness.py",
    "broker/door/reception.py",
    "broker/engine/terms.py",
    "broker/engine/unwritten_end.py",
    "broker/routing/cached.py",
    "broker/routing/names.py",
    "broker/routing/router.py",
    "broker/routing/shared.py",
    "broker/routing/tree.py",
    "broker/session/aliases.py",
    "broker/session/framing.py",
    "broker/session/held_publishers.py",
    "broker/session/incoming.py",
    "broker/session/inflight.py",
    "broker/session/name.py",
    "broker/session/queue.py",
    "broker/session/recipient.py",
    "broker/session/registry.py",
    "broker/session/session.py",
    "broker/engine/session_quota.py",
    "broker/store/batch.py",
    "broker/store/dispatch.py",
    "broker/store/outstanding.py",
    "broker/store/journal.py",
    "broker/sockets/rounds.py",
    "broker/sockets/slow_reader.py",
    "broker/door/strangers.py",
    "broker/sockets/tls_session.py",
    "broker/sockets/transport.py",
    "broker/sockets/transport_state.py",
    "broker/sockets/turn.py",
    "broker/door/waiting_room.py",
    "broker/connection/welcome.py",
    "broker/sockets/work.py",
]
"""What runs once a message or once a connection, and needs no framework that looks into its classes."""

_FLAGS = ["-fno-semantic-interposition", "-fno-plt"]
"""No library replaces a function of this one, so the compiler may inline what it exports; others' are called directly,
not by way of a jump that the loader fills in when first needed: Python has it fill in all at once (decision 0341)."""

SHIM = Path("shim.h")
"""What each module begins with that only leads to the library with all code: a hundred of thirty lines."""


class BuildShims(build_ext):
    """Has Python's headers read once: they are nearly all that compiling a shim takes."""

    def build_extensions(self) -> None:
        """Read them, then compile everything."""
        SHIM.write_text("#include <Python.h>\n")
        headers = [f"-I{each}" for each in self.compiler.include_dirs]
        shim = next(each for each in self.extensions if SHIM.name in each.extra_compile_args)
        command = [*self.compiler.compiler_so, *headers, *shim.extra_compile_args[:-2], "-x", "c-header"]
        subprocess.run([*command, SHIM, "-o", f"{SHIM}.gch"], check=True)  # noqa: S603 - the compiler
        super().build_extensions()


level = os.environ["OPTIMISED"]
extensions = mypycify(HOT, opt_level=level, debug_level="0")
for each in extensions:  # Which share a list.
    # mypyc indents each function by more than the last, to hundreds of columns: this warning alone, and the places of
    # lines for a debugger, took the compiler longer than all else.
    first = "seldom.h" if each.name.endswith("__mypyc") else SHIM.name
    each.extra_compile_args = [*each.extra_compile_args, *_FLAGS, "-Wno-misleading-indentation", "-include", first]
calls = cythonize("provisioning/pki/direct_calls.pyx", quiet=True)
for each in calls:
    each.extra_compile_args = [f"-O{level}", "-g0"]
setup(ext_modules=[*extensions, *calls], cmdclass={"build_ext": BuildShims})
