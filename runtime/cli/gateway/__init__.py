"""``gateway …``: the keys of the HTTP gateway."""
