"""The placeholders in the command that starts a device under test."""

from __future__ import annotations

PLACEHOLDERS = ("host", "port", "cafile", "crl", "cert", "key", "client_id", "topic", "commands", "est_url", "dir")
