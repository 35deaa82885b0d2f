"""Configuration: what may be set, how it is checked, and where it is read from."""
