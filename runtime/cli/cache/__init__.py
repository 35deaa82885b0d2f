"""``llama-actors cache``: the rows of a node, or of its directories when none runs."""
