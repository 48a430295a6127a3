"""The state that outlives a connection: sessions, messages, wills, who is there. No I/O, no clock."""
