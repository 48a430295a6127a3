"""Many devices on one loop, the backend that hears them, and what is counted of both."""
