"""Whoever asks for every table gets those of every module, and not only of the modules that somebody has imported."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

from provisioning import store


def tables_after_importing(modules: list[str]) -> list[str]:
    """Return the names of the tables that a new process knows when it has imported *modules*."""
    code = f"import {', '.join(modules)}\nfrom provisioning.store.columns import metadata\nprint(*metadata.tables)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return sorted(done.stdout.split())


def test_every_table_is_known_whatever_else_is_imported() -> None:
    modules = [f"{store.__name__}.{each.name}" for each in pkgutil.iter_modules(store.__path__) if not each.ispkg]
    found = tables_after_importing(["provisioning.store.every_table"])
    assert found == tables_after_importing(modules)
    assert {"devices", "manufacturers"} < set(found)
