"""What a fleet plays on: a provisioning service and a broker as processes of our own."""
