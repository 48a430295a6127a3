"""One client connection: the meaning of each packet, the answers, admission, and how a connection ends. No I/O."""
