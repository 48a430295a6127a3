"""The settings: what may be set, from where it comes, and which go together."""
