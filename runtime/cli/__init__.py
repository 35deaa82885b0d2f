"""The command line: `llama-actors` and `python -m runtime`."""
