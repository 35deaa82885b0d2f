"""The routes, one module for each API: they join what ``wire`` reads and writes with the node."""
