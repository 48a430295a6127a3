"""The command line: commands about a policy or a log, and those that speak to a running broker."""
