"""One connection of a device, whoever wrote the MQTT client: dialled, held, and why it ended."""
