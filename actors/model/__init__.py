"""The process of one loaded model: its actor, its services for text and for embeddings."""
