"""HTTP: the APIs of OpenAI, Anthropic, Ollama and llama-server over one node."""
