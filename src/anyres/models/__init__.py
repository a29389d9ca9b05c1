"""The networks: configurations, encoders, prompt side, and how weights get in and out."""
