"""The command line: what an operator types, and what all commands have in common."""
