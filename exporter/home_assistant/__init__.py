"""Home Assistant: accounts as devices, through an MQTT broker."""
