"""What starts a node: its tree as one literal, its directories, its keys."""
