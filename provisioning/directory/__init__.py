"""The service's directory: its files, write access, the process that serves it, and the chain of its audit log."""
