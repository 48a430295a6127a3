"""The process: how it starts, what it looks at before, its services together, and how it stops."""
