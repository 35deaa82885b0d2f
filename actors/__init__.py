"""The actors of a node: thin shells around pure cores, one file each."""
