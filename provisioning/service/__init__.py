"""The running service: its parts, its processes, its signals, and its shutdown."""
