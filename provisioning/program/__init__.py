"""What each of the three programs has as a program: command line, log, signals, memory. Imports nothing of ours."""
