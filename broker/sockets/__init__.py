"""Sockets, TLS and WebSocket, driven in turns of the event loop: bytes in and out for the connections above."""
