"""The HTTP gateway. Empty: it is not built yet."""
