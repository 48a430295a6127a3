"""The broker's own certificate and key, and the TLS contexts that are made of them."""
