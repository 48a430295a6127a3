"""The fleet's CAs and their life cycle: founded, opened, succeeded, revoked; and the service's own certificates."""
