"""The command line: ``python -m runtime COMMAND``.

Results go to standard output, everything else to standard error. Exit codes: 0 done, 1 the work
failed, 2 wrong usage, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from runtime import errors
from runtime.bench_command import add_bench_command
from runtime.cache_command import add_cache_commands
from runtime.chat_command import add_chat_command
from runtime.complete_command import add_complete_command
from runtime.config import (
    DEFAULT_PORT,
    PORT_VARIABLE,
    ModelConfig,
    RuntimeConfig,
    from_mapping,
    load_toml,
    parse_model_argument,
    resolve_port,
)
from runtime.embedded import EMBEDDED_MODEL_ID
from runtime.inspect_command import add_inspect_command
from runtime.load_flags import add_load_flags, params_from
from runtime.node import Node
from runtime.progress import ProgressLine
from runtime.results import ModelStatus
from runtime.sizes import disk_settings, format_size
from runtime.tend_commands import add_tend_commands
from runtime.text_commands import add_text_commands
from supervision.logs import LOG_FORMATS

DONE: Final = 0
FAILED: Final = 1
USAGE: Final = 2
INTERRUPTED: Final = 130
WATCH_S: Final = 2.0
_USAGE_ERRORS: Final = (errors.ConfigError, errors.InvalidRequest)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit as end:  # argparse has already said why
        return DONE if end.code in (None, 0) else USAGE
    try:
        return int(arguments.run(arguments))
    except _USAGE_ERRORS as error:
        _complain(str(error))
        return USAGE
    except errors.LlamaActorsError as error:
        _complain(str(error))
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED


def _complain(text: str) -> None:
    sys.stderr.write(f"error: {text}\n")


# ── arguments ──────────────────────────────────────────────────────────────────────────────────


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m runtime",
        description="llama.cpp as a supervised tree of actors that keeps prompts warm",
        epilog=f"A node is found by --admin-port, else by {PORT_VARIABLE}, else on {DEFAULT_PORT}.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_serve(commands)
    _add_model_commands(commands)
    add_complete_command(commands)
    add_chat_command(commands)
    add_text_commands(commands)
    for name, help_text, run in (
        ("status", "what every actor says of itself", _status),
        ("tree", "the live tree", _tree),
    ):
        command = commands.add_parser(name, help=help_text)
        _add_port(command)
        command.add_argument("--json", action="store_true", help="print one JSON object")
        command.set_defaults(run=run)
        if name == "tree":
            command.add_argument(
                "--watch", type=float, nargs="?", const=WATCH_S, metavar="SECONDS",
                help=f"show it again every so many seconds ({WATCH_S:.0f}) until Ctrl-C",
            )  # fmt: skip
    add_cache_commands(commands)
    add_tend_commands(commands)
    add_bench_command(commands)
    add_inspect_command(commands)
    stop = commands.add_parser("stop", help="stop the node")
    _add_port(stop)
    stop.set_defaults(run=_stop)
    demo = commands.add_parser("demo", help="cold, warm, killed, healed: one table")
    demo.add_argument("--json", action="store_true", help="print the rows as JSON")
    demo.set_defaults(run=_demo)
    doctor = commands.add_parser("doctor", help="check this machine and this installation")
    _add_port(doctor)
    doctor.add_argument("--json", action="store_true", help="print the checks as JSON")
    doctor.add_argument("--config", type=Path, metavar="FILE", help="check its directories, too")
    doctor.set_defaults(run=_doctor)
    return parser


def _add_port(command: argparse.ArgumentParser) -> None:
    command.add_argument("--admin-port", type=int, metavar="N", help="the node's admin port")


def _add_serve(commands: Any) -> None:
    serve = commands.add_parser("serve", help="run a node until it is stopped")
    _add_port(serve)
    serve.add_argument("--config", type=Path, metavar="FILE", help="TOML file with any setting")
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
    for hidden in ("--config-fd", "--ready-fd", "--parent-fd"):
        serve.add_argument(hidden, type=int, help=argparse.SUPPRESS)
    serve.set_defaults(run=_serve)


def _add_model_commands(commands: Any) -> None:
    load = commands.add_parser("load", help="load a model into a running node")
    _add_port(load)
    load.add_argument(
        "model", metavar="ID=PATH", help=f"or {EMBEDDED_MODEL_ID}, the embedded model"
    )
    add_load_flags(load)
    load.set_defaults(run=_load)
    unload = commands.add_parser("unload", help="unload a model")
    _add_port(unload)
    unload.add_argument("model", metavar="ID")
    unload.add_argument(
        "--drain", type=float, default=0.0, metavar="SECONDS",
        help="let running requests go on for so long",
    )  # fmt: skip
    unload.set_defaults(run=_unload)
    models = commands.add_parser("models", help="loaded models")
    _add_port(models)
    models.add_argument("--json", action="store_true", help="print a JSON list")
    models.set_defaults(run=_models)


# ── commands ───────────────────────────────────────────────────────────────────────────────────


def _serve(arguments: argparse.Namespace) -> int:
    from runtime.serve_command import serve_command

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
    for text in arguments.model:
        model, one = parse_model_argument(text)
        models[model] = dataclasses.replace(one, params=params)
    return dataclasses.replace(config, models=models)


def _load(arguments: argparse.Namespace) -> int:
    model, config = parse_model_argument(arguments.model)
    config = dataclasses.replace(config, params=params_from(arguments, "load"))
    with _attached(arguments) as node, ProgressLine(f"loading {model}") as line:
        status = node.client.load(model, config, progress=line.share)
    sys.stderr.write(f"loaded {model}: {status.details.get('description', '')}\n")
    return DONE


def _unload(arguments: argparse.Namespace) -> int:
    with _attached(arguments) as node:
        node.unload(arguments.model, drain_s=arguments.drain)
    return DONE


def _models(arguments: argparse.Namespace) -> int:
    with _attached(arguments) as node:
        models = node.models()
    if arguments.json:
        print(json.dumps([_model_json(model) for model in models], indent=2))
        return DONE
    for model in models:
        details = model.details
        print(
            f"{model.id:<16} {model.state:<10} {details.get('description', ''):<24} "
            f"n_ctx {details.get('n_ctx', '?'):<7} "
            f"{format_size(details.get('model_bytes', 0)):>10}  pid {model.pid}"
        )
    if not models:
        sys.stderr.write("no model is loaded; `load ID=PATH`, or complete with the model `demo`\n")
    return DONE


def _model_json(model: ModelStatus) -> dict[str, Any]:
    return {
        "id": model.id,
        "state": model.state,
        "pid": model.pid,
        "incarnation": model.incarnation,
        "restarts": model.restarts,
        "details": model.details,
    }


def _status(arguments: argparse.Namespace) -> int:
    with _attached(arguments) as node:
        status = node.status()
    if arguments.json:
        print(json.dumps(status, indent=2, default=str))
        return DONE
    print(f"node on port {status['node']['port']}, launcher pid {status['node']['pid']}")
    for actor, report in status["actors"].items():
        print(f"{actor}")
        if report is None:
            print("    no answer")
            continue
        for key, value in report.items():
            print(f"    {key}: {value}")
    return DONE


def _tree(arguments: argparse.Namespace) -> int:
    from runtime.tree_command import tree_command

    return tree_command(arguments.admin_port, as_json=arguments.json, watch_s=arguments.watch)


def _stop(arguments: argparse.Namespace) -> int:
    Node.attach(arguments.admin_port).stop()
    return DONE


def _demo(arguments: argparse.Namespace) -> int:
    from runtime.demo import demo_command

    return demo_command(as_json=arguments.json)


def _doctor(arguments: argparse.Namespace) -> int:
    from runtime.doctor import doctor_command

    config = None if arguments.config is None else from_mapping(load_toml(arguments.config))
    return doctor_command(resolve_port(arguments.admin_port), as_json=arguments.json, config=config)


def _attached(arguments: argparse.Namespace) -> Node:
    return Node.attach(arguments.admin_port)
