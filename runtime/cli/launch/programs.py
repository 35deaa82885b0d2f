"""What each program needs to use a gateway: variables and options of its own, and no file.

A program's own configuration is neither read nor changed; what is set here counts more than it, and
what a user writes behind ``--`` counts more than this. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

PROVIDER: Final = "llama-actors"
KEY_NAME: Final = "LLAMA_ACTORS_LAUNCH_KEY"
"""Holds the key for programs that read it from a variable that their configuration names."""
NO_KEY: Final = "none"
"""Programs want one; a gateway without keys takes any."""
AGENT_CONTEXT: Final = 32_768
"""What agents send before they have read a file fits in so many tokens, and little more."""


@dataclass(frozen=True, slots=True)
class Target:
    """The gateway and the model that a program is to use."""

    url: str
    model: str
    n_ctx: int | None = None
    """Tokens of the model's context; None: not known."""
    has_key: bool = False
    ca_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Setup:
    """How a program is started."""

    words: tuple[str, ...] = ()
    """Before those of the user."""
    variables: Mapping[str, str] = field(default_factory=dict)
    key_variables: tuple[str, ...] = ()
    """Hold the key."""
    removed: tuple[str, ...] = ()
    """Variables that would lead it elsewhere."""


@dataclass(frozen=True, slots=True)
class Program:
    """One program."""

    name: str
    about: str
    install: str
    """The command that installs it."""
    setup: Callable[[Target], Setup]
    ca_variable: str
    """Names a file of certificates that it trusts besides, or in place of, the system's."""


def _claude(target: Target) -> Setup:
    kinds = ("OPUS", "SONNET", "HAIKU")
    return Setup(
        variables={
            "ANTHROPIC_BASE_URL": target.url,
            "ANTHROPIC_MODEL": target.model,
            **{f"ANTHROPIC_DEFAULT_{kind}_MODEL": target.model for kind in kinds},
            "CLAUDE_CODE_SUBAGENT_MODEL": target.model,
            # Changes from session to session, and comes before everything else of a prompt.
            "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        },
        key_variables=("ANTHROPIC_AUTH_TOKEN",),
        removed=(
            "ANTHROPIC_API_KEY", "ANTHROPIC_SMALL_FAST_MODEL", "CLAUDE_CODE_USE_BEDROCK",
            "CLAUDE_CODE_USE_VERTEX", "CLAUDE_CODE_USE_FOUNDRY",
        ),
    )  # fmt: skip


def _codex(target: Target) -> Setup:
    provider = f"name={_toml(PROVIDER)},base_url={_toml(target.url + '/v1')}"
    provider += f',wire_api="responses",env_key={_toml(KEY_NAME)}'
    settings = [f"model_providers.{PROVIDER}={{{provider}}}", f"model_provider={_toml(PROVIDER)}"]
    settings.append(f"model={_toml(target.model)}")
    if target.n_ctx is not None:
        settings.append(f"model_context_window={target.n_ctx}")
    words = tuple(word for setting in settings for word in ("-c", setting))
    return Setup(words=words, key_variables=(KEY_NAME,))


def _toml(text: str) -> str:
    """A basic string; JSON's is one."""
    return json.dumps(text)


def _opencode(target: Target) -> Setup:
    model: dict[str, Any] = {"name": target.model}
    if target.n_ctx is not None:
        model["limit"] = {"context": target.n_ctx, "output": max(1, target.n_ctx // 4)}
    named = f"{PROVIDER}/{target.model}"
    content = {
        "provider": {
            PROVIDER: {
                "npm": "@ai-sdk/openai-compatible",
                "name": PROVIDER,
                "options": {"baseURL": f"{target.url}/v1", "apiKey": f"{{env:{KEY_NAME}}}"},
                "models": {target.model: model},
            }
        },
        "model": named,
        "small_model": named,
    }
    return Setup(
        variables={"OPENCODE_CONFIG_CONTENT": json.dumps(content)}, key_variables=(KEY_NAME,)
    )


def _qwen(target: Target) -> Setup:
    return Setup(
        words=("--auth-type", "openai"),
        variables={"OPENAI_BASE_URL": f"{target.url}/v1", "OPENAI_MODEL": target.model},
        key_variables=("OPENAI_API_KEY",),
    )


def _aider(target: Target) -> Setup:
    return Setup(
        variables={
            # Two names: what it is built on reads the second one first.
            "OPENAI_API_BASE": f"{target.url}/v1",
            "OPENAI_BASE_URL": f"{target.url}/v1",
            "AIDER_MODEL": f"openai/{target.model}",
            "AIDER_SHOW_MODEL_WARNINGS": "false",
        },
        key_variables=("OPENAI_API_KEY",),
    )


_NODE_CA: Final = "NODE_EXTRA_CA_CERTS"
PROGRAMS: Final = {
    one.name: one
    for one in (
        Program(
            "claude", "Claude Code", "npm install -g @anthropic-ai/claude-code", _claude, _NODE_CA
        ),
        Program("codex", "Codex", "npm install -g @openai/codex", _codex, "SSL_CERT_FILE"),
        Program("opencode", "opencode", "npm install -g opencode-ai", _opencode, _NODE_CA),
        Program("qwen", "Qwen Code", "npm install -g @qwen-code/qwen-code", _qwen, _NODE_CA),
        Program(
            "aider", "aider", "uv tool install --python 3.12 aider-chat", _aider, "SSL_CERT_FILE"
        ),
    )
}
"""By the names of their commands."""


def setup_for(program: Program, target: Target) -> Setup:
    """How the program is started for this gateway and model; without the key."""
    found = program.setup(target)
    if target.ca_file is None:
        return found
    variables = {**found.variables, program.ca_variable: str(target.ca_file)}
    return Setup(found.words, variables, found.key_variables, found.removed)


def environment(setup: Setup, before: Mapping[str, str], key: str) -> dict[str, str]:
    """The program's environment: that of the caller, with the key and what else is set."""
    kept = {name: value for name, value in before.items() if name not in setup.removed}
    keys = dict.fromkeys(setup.key_variables, key or NO_KEY)
    return {**kept, **setup.variables, **keys}
