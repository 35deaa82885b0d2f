"""`llama-actors cache`: looks into the rows of a node, or of its directories when none runs."""
