"""The cache of a running node, as its administration sees it: rows, counters, checks, removals."""
