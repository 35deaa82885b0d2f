"""Benchmarks: what the actors and the cache cost, always against a bare peer in the same run."""
