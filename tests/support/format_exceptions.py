EXCEPTIONS: dict[str, dict[str, str]] = {}
