"""The environment of a fleet: a provisioning service and a broker as our own processes."""
