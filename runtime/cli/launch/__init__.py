"""``launch``: programs of others, set up for a gateway."""
