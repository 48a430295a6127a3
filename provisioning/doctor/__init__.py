"""Checks of a service, with a remedy for each finding."""
