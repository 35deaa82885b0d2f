"""The KV cache below its actors: pure decisions, and the formats of rows on disk and in RAM."""
