"""One connection of a device, with either MQTT client: opened, held, and why it ended."""
