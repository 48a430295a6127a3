"""Sockets, TLS and WebSocket in turns of the event loop: bytes in and out, for the connections above."""
