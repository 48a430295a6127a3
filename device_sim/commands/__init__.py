"""The commands of `fleet-sim`: their arguments and implementation."""
