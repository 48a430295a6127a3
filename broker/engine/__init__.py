"""The state that outlives a connection: sessions, messages, wills, presence. No I/O, no clock."""
