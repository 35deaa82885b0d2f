"""Actors that a node has once: the registry and the memory-pressure scheduler."""
