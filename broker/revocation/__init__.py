"""Revocation as it happens: followed, kept over a restart, and enforced on connected clients."""
