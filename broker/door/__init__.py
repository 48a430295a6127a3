"""Where clients arrive: listeners, newcomers, and who has a place or waits for one."""
