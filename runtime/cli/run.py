"""``run``: ask a model by its name, or chat with it.

NAME is looked up among the models that the node has loaded, then the aliases and models of
``--config``, paths, fetched models, the folder of ``--models-dir``, Ollama's models, and last a
hub: ``ORG/REPO:TAG`` is fetched with ``--pull``, or after a question at a terminal, and never
otherwise. Where no node runs, one is started in the background and stays until ``stop``. The model
is loaded unless it is, and stays loaded until ``unload``.

The prompt is one message of a chat, or plain text for a model without a chat template. Without a
prompt: a chat at a terminal, and standard input as the prompt in a pipe.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from runtime import errors
from runtime.cli.chat import converse
from runtime.cli.chat_session import ChatSession
from runtime.cli.complete import show_event
from runtime.cli.load_options import load_options, params_from
from runtime.cli.model_names import (
    catalog_of,
    models_dir_option,
    name_argument,
    no_such_model,
)
from runtime.cli.options import (
    USER_PATH,
    json_option,
    node_command,
    port_option,
    template_given,
    template_option,
)
from runtime.cli.progress import ProgressLine
from runtime.cli.request_options import options_from, request_options
from runtime.cli.text_argument import given_text, text_argument

if TYPE_CHECKING:
    from runtime.catalog.catalog import Catalog, Known
    from runtime.cli.background import Settings
    from runtime.client.results import ModelStatus
    from runtime.node import Node
    from runtime.settings.config import ModelConfig


@node_command()
@port_option
@name_argument
@click.argument(
    "words", metavar="[PROMPT]...", nargs=-1, help="the question; - reads standard input"
)
@click.option("--pull", is_flag=True, help="fetch the model if it is not on this machine")
@click.option("--system", metavar="TEXT", help="the system message")
@click.option(
    "--config", type=USER_PATH, metavar="FILE",
    help="settings for the node, if one is started; its aliases and models are names",
)  # fmt: skip
@models_dir_option()
@json_option("print one JSON object at the end")
@template_option()
@request_options
@load_options
def command(**given: Any) -> int:
    from runtime.cli.background import Settings, started

    prompt = _prompt(given["words"])
    options = options_from(given)
    template = template_given(given["chat_template_file"], "run")
    if template is not None:
        options["chat_template"] = template
    settings = Settings(given)
    found: Known | None = None
    node = settings.running()
    if node is None:
        found = _found(given, settings)
        node = started(settings.config)
    with node:
        model = _model(node, found, given, settings)
        if prompt is None:
            return converse(ChatSession(node, model.id, options, given["system"]))
        _answer(node, model, prompt, given, options)
    return 0


def _prompt(words: tuple[str, ...]) -> str | None:
    """The question; None for a chat at a terminal."""
    if words == ("-",) or (not words and not sys.stdin.isatty()):
        text = text_argument("-").strip("\n")
        if not text:
            raise errors.InvalidRequest("standard input is empty; give a prompt")
        return text
    return given_text("the text of the command line", " ".join(words)) if words else None


# ── the model ───────────────────────────────────────────────────────────────────────────────────


def _model(
    node: Node, found: Known | None, given: Mapping[str, Any], settings: Settings
) -> ModelStatus:
    """The model, loaded unless it is; ``found``: where it was looked up already."""
    if found is None:
        for name in dict.fromkeys((given["name"], _meant(given["name"], settings))):
            loaded = _loaded(node, name)
            if loaded is not None:
                _note_loaded(name, given)
                is_up = loaded.state == "up" and loaded.details
                return loaded if is_up else _status(node, name)
        found = _found(given, settings)
    return _status(node, _ready(node, found, given, settings))


def _loaded(node: Node, name: str) -> ModelStatus | None:
    """The model of this id, unless it is not loaded, or the name cannot be an id."""
    try:
        status = node.model_info(name)
    except (errors.ModelUnknown, errors.InvalidRequest):
        return None
    return None if status.state == "down" else status


def _note_loaded(model: str, given: Mapping[str, Any]) -> None:
    from native.params import ModelParams

    if params_from(given, "run") != ModelParams():
        sys.stderr.write(
            f"note: {model} is loaded already; options of loading hold after `unload {model}`\n"
        )


def _meant(name: str, settings: Settings) -> str:
    from fnmatch import fnmatchcase

    aliases = settings.aliases
    return next((model for pattern, model in aliases if fnmatchcase(name, pattern)), name)


def _found(given: Mapping[str, Any], settings: Settings) -> Known:
    """The model on this machine, fetched if that is wanted; raises NoSuchModel."""
    name = _meant(given["name"], settings)
    catalog = catalog_of(given)
    of_config = settings.models.get(name)
    if of_config is not None:
        return _of_config(name, of_config)
    found = catalog.find(name)
    return _from_hub(catalog, name, pull=given["pull"]) if found is None else found


def _of_config(name: str, config: ModelConfig) -> Known:
    from runtime.catalog.catalog import file_named

    return dataclasses.replace(file_named(config.path), name=name, id=name)


def _from_hub(catalog: Catalog, name: str, *, pull: bool) -> Known:
    from runtime.catalog.catalog import known_as
    from runtime.catalog.names import hub_name
    from runtime.cli.fetch import fetched, fetched_if_wanted

    wanted = hub_name(name)
    if wanted is None:
        raise no_such_model(catalog, name)
    if pull:
        return known_as(fetched(wanted, catalog.store)[0])
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise no_such_model(catalog, name)
    model = fetched_if_wanted(wanted, catalog.store)
    if model is None:
        raise errors.NoSuchModel(name, f"{name} is not on this machine")
    return known_as(model)


def _ready(node: Node, found: Known, given: Mapping[str, Any], settings: Settings) -> str:
    """Load the model unless it is loaded, by whatever id, or is being loaded; returns the id."""
    from runtime.cli.background import ids_of_file

    ids = ids_of_file(node, found.path)
    if ids:
        _note_loaded(ids[0], given)
        return ids[0]
    model = _free_id(node, found)
    _load(node, model, found, _model_config(found, given, settings))
    return model


def _status(node: Node, model: str) -> ModelStatus:
    """What the model reports of itself, when it is loaded; another command may be loading it."""
    while True:
        try:
            node.ready(model)
        except errors.ModelDown:
            if node.model_info(model).details.get("phase") != "loading":
                raise
        else:
            return node.model_info(model)


def _model_config(found: Known, given: Mapping[str, Any], settings: Settings) -> ModelConfig:
    from native.params import ModelParams
    from runtime.settings.config import ModelConfig

    of_config = settings.models.get(found.name)
    params = params_from(given, "run")
    if of_config is None:
        return ModelConfig(str(found.path), params)
    if params != ModelParams():
        raise errors.InvalidRequest(
            f"{given['config']} has the settings of {found.name}; change them there, or name its "
            "file by its path"
        )
    return of_config


def _free_id(node: Node, found: Known) -> str:
    """The model's id, or another where that is the id of another file."""
    from runtime.catalog.names import id_beside

    taken = {one.id for one in node.models()}
    return id_beside(found.id, str(found.path)) if found.id in taken else found.id


def _load(node: Node, model: str, found: Known, config: ModelConfig) -> None:
    with ProgressLine(f"loading {found.name}") as line:
        try:
            status = node.client.load(model, config, progress=line.share)
        except errors.ModelAlreadyLoaded:
            return  # another command was faster
    for note in status.notes:
        sys.stderr.write(f"note: {note}\n")


# ── the answer ──────────────────────────────────────────────────────────────────────────────────


def _answer(
    node: Node,
    model: ModelStatus,
    prompt: str,
    given: Mapping[str, Any],
    options: Mapping[str, Any],
) -> None:
    """Print the answer as it comes, or one object at its end."""
    system = given["system"]
    has_template = bool(model.details.get("chat_template") or "chat_template" in options)
    if not has_template and system is not None:
        raise errors.NotSupported(
            f"{model.id} has no chat template, so a system message has no place; put it into the "
            "prompt"
        )
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages.append({"role": "user", "content": prompt})
    with (
        ProgressLine("reading the prompt") as line,
        (
            node.stream_chat(model.id, messages, **options)
            if has_template
            else node.stream(model.id, prompt, **options)
        ) as events,
    ):
        for event in events:
            show_event(event, line, as_json=given["as_json"])
