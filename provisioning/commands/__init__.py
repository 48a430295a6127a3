"""The command line: the operator's commands, and their shared parts."""
