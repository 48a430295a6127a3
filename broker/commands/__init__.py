"""The command line: commands about a policy or a log, and those that talk to a running broker."""
