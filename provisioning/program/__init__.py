"""What the three programs share as programs: command line, log, signals, memory. Imports nothing of ours."""
