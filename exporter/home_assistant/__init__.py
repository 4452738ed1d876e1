"""What Home Assistant is told of the accounts, through an MQTT broker."""
