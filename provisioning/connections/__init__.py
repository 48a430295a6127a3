"""From a listening socket to a request: connection limits, TLS handshakes, HTTP as the application needs it."""
