"""Nodes on several hosts. Empty: it is not built yet."""
