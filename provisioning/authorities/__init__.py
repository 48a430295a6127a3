"""The fleet's CAs and their lives: founded, opened, succeeded, revoked; and what the service certifies for itself."""
