"""The whole product in one story."""
