"""KV state of a model: rows are looked up, restored and written here, for one engine."""
