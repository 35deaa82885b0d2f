"""The engine: the one thread of a model's process that owns a context and runs its steps."""
