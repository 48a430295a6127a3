"""The running service: its parts, its processes, its signals, and the end of it."""
