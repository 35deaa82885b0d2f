"""The arguments of ``serve``, and the configuration that they make."""

from __future__ import annotations

import argparse
import dataclasses
import json

from runtime.cli.load_flags import add_load_flags, params_from
from runtime.cli.node_flags import add_port
from runtime.settings.config import (
    ModelConfig,
    RuntimeConfig,
    from_mapping,
    load_toml,
    parse_model_argument,
)
from runtime.settings.ports import resolve_port
from runtime.settings.sizes import disk_settings
from runtime.settings.template_settings import add_template_flag, template_given
from runtime.settings.user_paths import path_flag
from supervision.logs import LOG_FORMATS


def add_serve(serve: argparse.ArgumentParser) -> None:
    """Add the arguments of ``serve``."""
    add_port(serve)
    serve.add_argument(
        "--config", type=path_flag, metavar="FILE", help="TOML file with any setting"
    )
    serve.add_argument(
        "--model", action="append", default=[], metavar="ID=PATH", help="load this GGUF; repeatable"
    )
    serve.add_argument("--cache-dir", metavar="DIR", help="root of the disk tier")
    serve.add_argument(
        "--cache-ram", metavar="SIZE", help="budget of the RAM tier, e.g. 4GiB; 0: off"
    )
    serve.add_argument(
        "--cache-ram-file",
        metavar="SIZE",
        help="files in memory, which survive a restart of the node",
    )
    serve.add_argument(
        "--cache-disk", action="append", metavar="SIZE|DIR=SIZE",
        help="budget of the disk tier; 0: off; several disks: DIR=SIZE for each",
    )  # fmt: skip
    serve.add_argument(
        "--log-file", metavar="FILE", help="life-cycle log instead of standard error"
    )
    serve.add_argument("--log-format", choices=LOG_FORMATS, help="text, or one JSON object a line")
    add_load_flags(serve)  # of every --model
    add_template_flag(serve)
    for hidden in ("--config-fd", "--ready-fd", "--parent-fd"):
        serve.add_argument(hidden, type=int, help=argparse.SUPPRESS)
    serve.set_defaults(run=_serve)


def _serve(arguments: argparse.Namespace) -> int:
    from runtime.cli.serve import serve_command

    if arguments.config_fd is not None:
        with open(arguments.config_fd, encoding="utf-8") as settings:
            config = from_mapping(json.load(settings))
    else:
        config = _serve_config(arguments)
    return serve_command(config, ready_fd=arguments.ready_fd, parent_fd=arguments.parent_fd)


def _serve_config(arguments: argparse.Namespace) -> RuntimeConfig:
    """Command line over environment over file over defaults."""
    settings = load_toml(arguments.config) if arguments.config else {}
    if arguments.admin_port is not None or "admin_port" not in settings:
        settings["admin_port"] = resolve_port(arguments.admin_port)
    for key in ("cache_dir", "log_file", "log_format"):
        if getattr(arguments, key) is not None:
            settings[key] = getattr(arguments, key)
    for key in ("cache_ram", "cache_ram_file"):
        if getattr(arguments, key) is not None:
            settings[key] = getattr(arguments, key)
    if arguments.cache_dir is not None:
        settings.pop("cache_disks", None)  # one disk or several: the command line has said which
    if arguments.cache_disk is not None:
        given = disk_settings(arguments.cache_disk)
        settings.pop("cache_disks", None)
        if "cache_disks" in given and arguments.cache_dir is None:
            settings.pop("cache_dir", None)
        settings |= given
    config = from_mapping(settings)
    models: dict[str, ModelConfig] = dict(config.models)
    params = params_from(arguments, "model")
    template = template_given(arguments, "model")
    for text in arguments.model:
        model, one = parse_model_argument(text)
        models[model] = dataclasses.replace(one, params=params, chat_template=template)
    return dataclasses.replace(config, models=models)
