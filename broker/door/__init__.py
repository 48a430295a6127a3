"""Where clients come in: listeners, newcomers, who has a place and who waits for one."""
