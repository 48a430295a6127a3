"""Opens the configured audit log; without one, a substitute that does nothing."""

from __future__ import annotations

import os
from collections.abc import Callable

from broker.admission.refusal import Refused
from broker.audit.files import opened_files
from broker.audit.log import AuditLog
from broker.engine.engine import Engine
from broker.settings.config import BrokerConfig
from provisioning.program.build import build_identity
from provisioning.program.version import product_version


class NoAudit:
    """No audit log."""

    def close(self) -> None:
        """Do nothing."""


def open_audit(config: BrokerConfig, engine: Engine, call_soon_threadsafe: Callable[..., object]) -> AuditLog | NoAudit:
    """Open the audit log of *config* and connect *engine*'s history to it. Raises `AuditError`."""
    if config.audit_log is None:
        return NoAudit()

    def on_state(refusal: Refused | None) -> None:
        if config.audit_policy == "require":
            engine.admission.shut = refusal

    files = opened_files(config.audit_log, config.audit_key, config.audit_max_bytes, config.audit_max_files)
    audit = AuditLog(files, engine.metrics.audit_entries, call_soon_threadsafe, on_state)
    audit.start(broker=config.name, version=product_version(), build=build_identity(), pid=os.getpid())
    engine.history.witness = audit
    return audit
