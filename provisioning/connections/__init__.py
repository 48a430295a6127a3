"""From a listening socket to a request: places, TLS handshakes, HTTP as the application needs it."""
