"""``llama-actors config``: the configuration explained."""
