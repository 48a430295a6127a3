"""Revocation as it happens: followed, kept over a restart, and enforced against those who are connected."""
