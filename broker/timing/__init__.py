"""When something is done again: on a common beat, or after pauses that grow."""
