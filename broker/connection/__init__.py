"""One connection of a client: what its packets mean, what it is answered, how it begins and ends. No I/O."""
