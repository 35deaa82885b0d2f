"""All commands: name, module, and one line of help. A command's module is imported when it is used.

Imports are most of the time that a command takes, so the list for ``--help`` and for completion is
this table. Each module has a ``command``, and imports what connects to a node only when it runs.
"""

from __future__ import annotations

from typing import Final

from runtime.cli.lazy_group import HELP_FLAGS, LazyGroup
from runtime.settings.ports import DEFAULT_PORT, PORT_VARIABLE, URL_VARIABLE

COMMANDS: Final = {
    "run": (
        "runtime.cli.run",
        "ask a model by its name; it is loaded, and a node started, as needed",
    ),
    "pull": ("runtime.cli.pull", "fetch a model of a hub"),
    "ls": ("runtime.cli.ls", "models on this machine"),
    "show": ("runtime.cli.show", "where a model is from, what it is, and the memory it needs"),
    "rm": ("runtime.cli.rm", "remove a model that was fetched"),
    "serve": ("runtime.cli.serve", "run a node until it is stopped"),
    "load": ("runtime.cli.load", "load a model into a running node"),
    "unload": ("runtime.cli.unload", "unload a model"),
    "models": ("runtime.cli.models", "loaded models"),
    "complete": ("runtime.cli.complete", "generate text"),
    "chat": ("runtime.cli.chat", "chat with a model; in a pipe, each line is a turn"),
    "tokenize": ("runtime.cli.tokenize", "the tokens of a text"),
    "infill": ("runtime.cli.infill", "write what belongs between two texts"),
    "embed": ("runtime.cli.embed", "the vector of a text"),
    "rerank": ("runtime.cli.rerank", "order texts by how well they fit a query"),
    "launch": ("runtime.cli.launch.command", "start Claude Code or another agent on a gateway"),
    "status": ("runtime.cli.status", "the counters and settings that every actor reports"),
    "tree": ("runtime.cli.tree", "the live tree"),
    "cache": ("runtime.cli.cache.group", "inspect and maintain the cache"),
    "adapters": (
        "runtime.cli.adapters",
        "LoRA adapters of a model: show, load, scale, unload",
    ),
    "evict": (
        "runtime.cli.evict",
        "free idle sequences of a model's context, after storing what they hold",
    ),
    "bench": ("runtime.cli.bench", "how fast a model reads and writes, cold and warm"),
    "inspect": (
        "runtime.cli.inspect",
        "explain one row file of the cache, or a GGUF model and the memory it needs",
    ),
    "stop": ("runtime.cli.stop", "stop the node"),
    "demo": ("runtime.cli.demo", "cold, warm, killed, healed: one table"),
    "doctor": ("runtime.cli.doctor", "check this machine and this installation"),
    "config": (
        "runtime.cli.config.group",
        "the configuration: reference, defaults, schema, check",
    ),
    "gateway": ("runtime.cli.gateway.group", "HTTP: make keys, and list those that there are"),
    "completion": ("runtime.cli.completion", "print the completion script of a shell"),
}

program: Final = LazyGroup(
    "llama-actors",
    COMMANDS,
    help="llama.cpp as a supervised tree of actors that keeps prompts warm",
    epilog=(
        f"A node is found by --admin-port, else by {PORT_VARIABLE}, else on {DEFAULT_PORT}. Many "
        f"commands also work on a gateway elsewhere, by --url or {URL_VARIABLE}."
    ),
    context_settings=HELP_FLAGS,
)
