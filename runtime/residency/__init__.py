"""Which models are in memory: loaded at their first use, put to sleep, and out to make room."""
