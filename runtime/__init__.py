"""llama-actors: llama.cpp as a supervised tree of actors that keeps prompts warm."""
