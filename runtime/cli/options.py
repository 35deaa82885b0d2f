"""What commands have in common: their options and arguments, and how they reach a node."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
from click.shell_completion import CompletionItem

from runtime.errors import ConfigError, LlamaActorsError
from runtime.settings.ports import URL_VARIABLE
from runtime.settings.user_paths import expanded

if TYPE_CHECKING:
    from runtime.node import Node
    from runtime.remote.node import RemoteNode

Function = TypeVar("Function", bound=Callable[..., Any])
Decorator = Callable[[Function], Function]


class Option(click.Option):
    """An option that belongs to a section of the command's help."""

    def __init__(self, *arguments: Any, section: str = "", **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.section = section


class Command(click.Command):
    """A command that lists its options by section; click lists the arguments before them."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for one in self.get_params(ctx):
            record = one.get_help_record(ctx)
            if record is not None and isinstance(one, click.Option):
                sections.setdefault(section_of(one), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


def section_of(option: click.Option) -> str:
    """The heading of the option in the help."""
    return getattr(option, "section", "") or "Options"


def node_command(**attributes: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a function the command of its module; its help is the line in ``commands``.

    The function returns the exit code.
    """
    from runtime.cli.lazy_group import HELP_FLAGS

    return click.command(cls=Command, context_settings=HELP_FLAGS, help="", **attributes)


class UserPath(click.ParamType[Path]):
    """A path that may start with ``~``; a relative one stays relative."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        try:
            return expanded(value, "")
        except ConfigError as error:
            self.fail(str(error).removeprefix(": "), param, ctx)

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002 - click's interface
        param: click.Parameter,  # noqa: ARG002
        incomplete: str,
    ) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type="file")]


USER_PATH: Final = UserPath()


def _running_models(
    ctx: click.Context,
    param: click.Parameter,  # noqa: ARG001 - click's interface
    incomplete: str,
) -> list[CompletionItem]:
    """Ids of the models of the running node; none where no node answers."""
    with contextlib.suppress(LlamaActorsError, OSError), attached(ctx.params) as node:
        ids = [model.id for model in node.models()]
        return [CompletionItem(one) for one in ids if one.startswith(incomplete)]
    return []


port_option: Final = click.option(
    "--admin-port", type=int, metavar="N", is_eager=True, help="the node's admin port"
)
"""Processed first, so that completion of model ids asks the node that was named."""
model_argument: Final = click.argument(
    "model", metavar="MODEL", shell_complete=_running_models, help="id of a loaded model"
)


REMOTE: Final = "A node elsewhere"
URL_HELP: Final = "ask the gateway at http://HOST:PORT, https://HOST or unix:PATH"


def node_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Where the node is: on a port of this machine, or behind a gateway; for ``attached``."""
    options = with_options(
        [
            port_option,
            section_option(REMOTE, "--url", metavar="URL", is_eager=True, help=URL_HELP),
            *key_options(),
            section_option(
                REMOTE, "--ca", type=USER_PATH, metavar="FILE", is_eager=True,
                help="trust these certificates (PEM) in place of the system's",
            ),
        ]
    )  # fmt: skip
    decorated: Callable[..., Any] = options(function)
    return decorated


def key_options(section: str = REMOTE) -> list[Decorator[Any]]:
    """``--key`` and ``--key-file``."""
    return [
        section_option(
            section, "--key-file", type=USER_PATH, metavar="FILE", is_eager=True,
            help="a file with its key",
        ),
        section_option(
            section, "--key", "gateway_key", metavar="KEY", is_eager=True,
            help="its key; other users of this machine see it in the list of processes",
        ),
    ]  # fmt: skip


def json_option(words: str = "print one JSON object") -> Decorator[Any]:
    """``--json``, as the parameter ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help=words)


def with_options(options: Sequence[Decorator[Any]]) -> Decorator[Any]:
    """Several options as one decorator; the help lists them in this order."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        for one in reversed(options):
            function = one(function)
        return function

    return add


def section_option(section: str, *names: str, **attributes: Any) -> Decorator[Any]:
    """An option below a heading of its own in the help."""
    return click.option(*names, cls=Option, section=section, **attributes)


def flag_of(name: str) -> str:
    """The flag of a parameter: ``--n-ctx`` for ``n_ctx``."""
    return "--" + name.replace("_", "-")


def template_option() -> Decorator[Any]:
    """``--chat-template-file``; ``template_given`` reads the file."""
    return click.option(
        "--chat-template-file",
        type=USER_PATH,
        metavar="FILE",
        help="Jinja chat template in place of the model's own",
    )


def template_given(chat_template_file: Path | None, where: str) -> str | None:
    """The text of the file that ``--chat-template-file`` names; raises ConfigError."""
    from runtime.settings.template_settings import FILE, template_from

    return template_from({FILE: chat_template_file}, where)


def attached(given: Mapping[str, Any]) -> Node | RemoteNode:
    """The node that the parameters of a command name; raises NodeNotRunning.

    Imported here, after the arguments were checked: it is most of what a command imports.
    """
    if is_elsewhere(given):
        from runtime.remote.address import address_from
        from runtime.remote.node import RemoteNode

        address = address_from(given)
        if address is not None:
            return RemoteNode(address)
    return _attached(given)


def is_elsewhere(given: Mapping[str, Any]) -> bool:
    """Whether the parameters of a command, or the environment, name a gateway."""
    names = ("url", "gateway_key", "key_file", "ca")
    if any(given.get(name) is not None for name in names):
        return True
    return given.get("admin_port") is None and bool(os.environ.get(URL_VARIABLE))


def attached_here(given: Mapping[str, Any]) -> Node:
    """The node of this machine that the parameters of a command name; raises NodeNotRunning.

    Refused where the environment names a gateway elsewhere, which the command would not ask.
    """
    if is_elsewhere(given):
        raise ConfigError(
            URL_VARIABLE,
            "names a gateway, and this command works on a node of this machine alone: name that "
            "with --admin-port, or unset the variable",
        )
    return _attached(given)


def _attached(given: Mapping[str, Any]) -> Node:
    from runtime.node import Node

    return Node.attach(given.get("admin_port"))
