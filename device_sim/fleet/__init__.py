"""Many devices on one loop, the backend that receives their messages, and the counts of both."""
