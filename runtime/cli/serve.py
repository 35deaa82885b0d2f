"""``serve``: run a node until it is stopped.

Its models are loaded when it is ready; one that fails is reported on standard error, and the others
are loaded. Exit codes: 0 stopped, 1 it could not start, 2 a setting is wrong.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import subprocess
import sys
from typing import Any

import click

from actors.messages.exact import Exact
from runtime import errors
from runtime.cli.load_options import exact_option, load_options, params_from
from runtime.cli.options import (
    USER_PATH,
    node_command,
    port_option,
    template_given,
    template_option,
)
from runtime.settings.config import (
    ModelConfig,
    RuntimeConfig,
    from_mapping,
    load_toml,
    located,
    parse_model_argument,
    to_mapping,
)
from runtime.settings.gateway import GATEWAY_VARIABLE
from runtime.settings.ports import resolve_port
from runtime.settings.sizes import disk_settings
from supervision.errors import NodeAlreadyRunning, PortInUse, SupervisionError
from supervision.launched import child_environment, say_ready
from supervision.logs import LOG_FORMATS

_SETTINGS = (
    "models_dir", "models_max", "models_memory", "keep_alive", "cache_dir", "cache_ram",
    "cache_ram_file", "log_file", "log_format",
)  # fmt: skip
"""Options that are settings of the same name."""
_COLLECT_AFTER = 700
"""Objects between two collections: Python's own number, for the actors, which are forked."""


@node_command()
@port_option
@click.option("--config", type=USER_PATH, metavar="FILE", help="TOML file with any setting")
@click.option("--model", multiple=True, metavar="ID=PATH", help="load this GGUF; repeatable")
@click.option(
    "--models-dir", metavar="DIR", help="folder of GGUF files; each is loaded at its first use"
)
@click.option(
    "--models-max",
    type=int,
    metavar="N",
    help="models in memory together; the least recently used one leaves for another",
)
@click.option("--models-memory", metavar="SIZE", help="memory that they may take together")
@click.option(
    "--keep-alive",
    metavar="DURATION",
    help="let a model sleep after so long without requests, e.g. 5m (default: never)",
)
@click.option("--cache-dir", metavar="DIR", help="root of the disk tier")
@click.option("--cache-ram", metavar="SIZE", help="budget of the RAM tier, e.g. 4GiB; 0: off")
@click.option(
    "--cache-ram-file", metavar="SIZE", help="files in memory, which survive a restart of the node"
)
@click.option(
    "--cache-disk",
    multiple=True,
    metavar="SIZE|DIR=SIZE",
    help="budget of the disk tier; 0: off; several disks: DIR=SIZE for each",
)
@click.option(
    "--gateway",
    multiple=True,
    metavar="HOST:PORT",
    help="serve HTTP there, e.g. 127.0.0.1:8080; or unix:/path; repeatable",
)
@click.option("--log-file", metavar="FILE", help="life-cycle log instead of standard error")
@click.option(
    "--log-format", type=click.Choice(LOG_FORMATS), help="text, or one JSON object a line"
)
@load_options
@template_option()
@exact_option
@click.option("--config-fd", type=int, hidden=True)
@click.option("--ready-fd", type=int, hidden=True)
@click.option("--parent-fd", type=int, hidden=True)
def command(**given: Any) -> int:
    gc.set_threshold(_COLLECT_AFTER)
    if given["config_fd"] is not None:
        with open(given["config_fd"], encoding="utf-8") as settings:
            config = from_mapping(json.load(settings))
    else:
        config = configuration(given)
    return _run(config, ready_fd=given["ready_fd"], parent_fd=given["parent_fd"])


def configuration(given: dict[str, Any]) -> RuntimeConfig:
    """Command line over environment over file over defaults."""
    path = given["config"]
    settings = load_toml(path) if path else {}
    stronger = {key: given[key] for key in _SETTINGS if given[key] is not None}
    if given["admin_port"] is not None or "admin_port" not in settings:
        stronger["admin_port"] = resolve_port(given["admin_port"])
    if given["cache_dir"] is not None:
        settings.pop("cache_disks", None)  # the command line decides: one disk or several
    if given["cache_disk"]:
        disks = disk_settings(given["cache_disk"])
        settings.pop("cache_disks", None)
        if "cache_disks" in disks and given["cache_dir"] is None:
            settings.pop("cache_dir", None)
        stronger |= disks
    listen = list(given["gateway"]) or os.environ.get(GATEWAY_VARIABLE, "").split()
    if listen:
        stronger["gateway"] = {**settings.get("gateway", {}), "listen": listen}
    with located(path, besides=() if listen else stronger):
        config = from_mapping(settings | stronger)
    models: dict[str, ModelConfig] = dict(config.models)
    params = params_from(given, "model")
    template = template_given(given["chat_template_file"], "model")
    for text in given["model"]:
        model, one = parse_model_argument(text)
        models[model] = dataclasses.replace(
            one, params=params, chat_template=template, exact=Exact(given["exact"])
        )
    return dataclasses.replace(config, models=models)


def _run(config: RuntimeConfig, *, ready_fd: int | None, parent_fd: int | None) -> int:
    """Run a node; on ``ready_fd``, when given, write ``{}`` or the error as one line of JSON."""
    from runtime.launch.launcher import serve, write_note

    def on_ready() -> None:
        if ready_fd is not None:
            say_ready(ready_fd)
        else:
            where = f"port {config.admin_port} (pid {os.getpid()})"
            write_note(f"node ready on {where}; Ctrl-C stops it")
            for one in config.gateway.listen:
                write_note(f"HTTP on {one.url}")
        if not all(one.autoload for one in config.models.values()):
            _load_models(config)

    try:
        return serve(config, on_ready=on_ready, parent_fd=parent_fd)
    except (errors.LlamaActorsError, SupervisionError) as error:
        public = _public(error)
        if ready_fd is not None:
            say_ready(ready_fd, error, str(public))
        raise public from error


def _public(error: errors.LlamaActorsError | SupervisionError) -> errors.LlamaActorsError:
    if isinstance(error, errors.LlamaActorsError):
        return error
    if isinstance(error, PortInUse | NodeAlreadyRunning):
        return errors.NodeStartFailed(f"{error}; --admin-port chooses another port")
    return errors.NodeStartFailed(str(error))


def _load_models(config: RuntimeConfig) -> None:
    """Start the loader, a client like any other that ends when all models are loaded.

    It is a process of its own because the launcher must not have threads when it forks.
    """
    loader = subprocess.Popen(
        [sys.executable, "-m", "runtime.cli.load_models", str(os.getpid())],
        stdin=subprocess.PIPE,
        env=child_environment(),
    )
    if loader.stdin is not None:
        loader.stdin.write(json.dumps(to_mapping(config)).encode())
        loader.stdin.close()
