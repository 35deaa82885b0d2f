"""``load``, ``unload`` and ``models``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Any

from runtime.cli.load_flags import add_load_flags, params_from
from runtime.cli.node_flags import add_port, attached
from runtime.cli.progress import ProgressLine
from runtime.embedded import EMBEDDED_MODEL_ID
from runtime.settings.config import parse_model_argument
from runtime.settings.sizes import format_size
from runtime.settings.template_settings import add_template_flag, template_given

if TYPE_CHECKING:
    from runtime.client.results import ModelStatus


def add_load(load: argparse.ArgumentParser) -> None:
    """Add the arguments of ``load``."""
    add_port(load)
    load.add_argument(
        "model", metavar="ID=PATH", help=f"or {EMBEDDED_MODEL_ID}, the embedded model"
    )
    add_load_flags(load)
    add_template_flag(load)
    load.set_defaults(run=_load)


def add_unload(unload: argparse.ArgumentParser) -> None:
    """Add the arguments of ``unload``."""
    add_port(unload)
    unload.add_argument("model", metavar="ID")
    unload.add_argument(
        "--drain", type=float, default=0.0, metavar="SECONDS",
        help="let running requests go on for so long",
    )  # fmt: skip
    unload.set_defaults(run=_unload)


def add_models(models: argparse.ArgumentParser) -> None:
    """Add the arguments of ``models``."""
    add_port(models)
    models.add_argument("--json", action="store_true", help="print a JSON list")
    models.set_defaults(run=_models)


def _load(arguments: argparse.Namespace) -> int:
    model, config = parse_model_argument(arguments.model)
    config = dataclasses.replace(
        config,
        params=params_from(arguments, "load"),
        chat_template=template_given(arguments, "load"),
    )
    with attached(arguments) as node, ProgressLine(f"loading {model}") as line:
        status = node.client.load(model, config, progress=line.share)
    sys.stderr.write(f"loaded {model}: {status.details.get('description', '')}\n")
    for note in status.notes:
        sys.stderr.write(f"note: {note}\n")
    return 0


def _unload(arguments: argparse.Namespace) -> int:
    with attached(arguments) as node:
        node.unload(arguments.model, drain_s=arguments.drain)
    return 0


def _models(arguments: argparse.Namespace) -> int:
    with attached(arguments) as node:
        models = node.models()
    if arguments.json:
        plain = [_model_json(model) for model in models]
        sys.stdout.write(json.dumps(plain, indent=2) + "\n")
        return 0
    for model in models:
        details = model.details
        sys.stdout.write(
            f"{model.id:<16} {model.state:<10} {details.get('description', ''):<24} "
            f"n_ctx {details.get('n_ctx', '?'):<7} "
            f"{format_size(details.get('model_bytes', 0)):>10}  pid {model.pid}\n"
        )
    if not models:
        sys.stderr.write("no model is loaded; `load ID=PATH`, or complete with the model `demo`\n")
    return 0


def _model_json(model: ModelStatus) -> dict[str, Any]:
    return {
        "id": model.id,
        "state": model.state,
        "pid": model.pid,
        "incarnation": model.incarnation,
        "restarts": model.restarts,
        "details": model.details,
    }
