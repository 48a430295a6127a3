"""What is looked at now and then while the broker runs: clocks, what has expired, a store that stands still."""
