"""Model files that are there, by their names: in folders, in other programs' stores, from hubs."""
