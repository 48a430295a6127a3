"""What may be wrong with a service, each with its remedy."""
