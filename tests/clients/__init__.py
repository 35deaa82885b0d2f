"""Programs that other people wrote, unmodified, against the gateway: ``python -m tests.clients``.

The SDKs' own API tests and examples, client libraries, command-line agents, a schema-driven fuzzer
and two load tools, each from its package, locked with hashes and installed into ``build/clients``.
They run beside the gateway in a network namespace that has only loopback, so nothing of them
reaches the network, and in a process namespace, so nothing of them is left.

Each suite has a list of what is known to fail, with the reason, and a floor of how much passes.
The lists may only shrink: a test of the list that passes fails the run until it is taken off.

    python -m tests.clients                 # install, then all suites
    python -m tests.clients --list          # their names
    python -m tests.clients openai ollama   # these suites
    python -m tests.clients --install       # only install
"""
