"""The commands of `fleet-sim`: their arguments, and what they do."""
