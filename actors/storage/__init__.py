"""The node's cache: its index, its RAM tier, its file tiers and the background writer."""
