"""Benchmarks of the actors and the cache, each against a bare peer in the same run."""
