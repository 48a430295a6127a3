"""A whole mosquitto.conf as settings of the broker; what each option becomes: `broker.settings.mosquitto_options`."""
