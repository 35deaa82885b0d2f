"""``launch``: start a program of others, set up for a gateway.

Variables and options are set for this start alone; no file of the program is read or written. The
program replaces this one, so signals and the exit code are its own. Words for it follow ``--``.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
from typing import Any

import click

from runtime import errors
from runtime.cli.launch.programs import (
    AGENT_CONTEXT,
    NO_KEY,
    PROGRAMS,
    Program,
    Setup,
    environment,
    setup_for,
)
from runtime.cli.options import node_command, node_options
from runtime.settings.ports import KEY_VARIABLE


@node_command(epilog="For instance: llama-actors launch claude -- -p 'What is in this folder?'")
@node_options
@click.argument("program", type=click.Choice(tuple(PROGRAMS)), help="what to start")
@click.argument("words", metavar="[-- WORDS...]", nargs=-1, help="its own options and arguments")
@click.option("--model", metavar="NAME", help="the model to use; default: the only one")
@click.option(
    "--serve", metavar="ID=PATH",
    help="start a node with this model (or demo) and a gateway, which end with the program",
)  # fmt: skip
@click.option("--n-ctx", type=int, metavar="N", help="with --serve: tokens of its context")
@click.option("--print", "only_prints", is_flag=True, help="print what would be set, as a script")
def command(**given: Any) -> int:
    from runtime.cli.launch.target import gateway_of, served, target_of

    program = PROGRAMS[given["program"]]
    if given["n_ctx"] is not None and given["serve"] is None:
        raise errors.ConfigError("--n-ctx", "is for --serve; a running model keeps its context")
    if given["serve"] is None:
        address = gateway_of(given)
        setup = _setup(program, target_of(address, given["model"]))
        if given["only_prints"]:
            sys.stdout.write(script(program, setup, given))
            return 0
        return _start(_found(program), program, setup, given["words"], address.key)
    if given["only_prints"] or given["url"] is not None:
        raise errors.ConfigError("--serve", "starts a node, which --print and --url do not go with")
    path = _found(program)
    with served(given["serve"], given["n_ctx"]) as address:
        setup = _setup(program, target_of(address, given["model"]))
        return _start(path, program, setup, given["words"], address.key)


def _setup(program: Program, target: Any) -> Setup:
    n_ctx = target.n_ctx
    if n_ctx is not None and n_ctx < AGENT_CONTEXT:
        sys.stderr.write(
            f"note: {target.model} has a context of {n_ctx} tokens; agents send 20,000 and more "
            "before they have read a file: load it with --n-ctx 65536\n"
        )
    return setup_for(program, target)


def _found(program: Program) -> str:
    path = shutil.which(program.name)
    if path is None:
        raise errors.LlamaActorsError(
            f"{program.about} is not installed: there is no `{program.name}` in PATH; install it "
            f"with `{program.install}`"
        )
    return path


def _start(path: str, program: Program, setup: Setup, words: tuple[str, ...], key: str) -> int:
    """Replace this process by the program."""
    variables = environment(setup, os.environ, key)
    sys.stdout.flush()
    sys.stderr.flush()
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores both, and exec keeps that
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execve(path, [program.name, *setup.words, *words], variables)  # noqa: S606 - our words
    except OSError as error:
        raise errors.LlamaActorsError(f"{path} cannot be started: {error.strerror}") from error


def script(program: Program, setup: Setup, given: dict[str, Any]) -> str:
    """What is set, as lines for a shell. A key is named by where it is from, never shown."""
    lines = [f"unset {name}" for name in setup.removed]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in setup.variables.items()]
    lines += [f"export {name}={_key_words(given)}" for name in setup.key_variables]
    command = shlex.join([program.name, *setup.words, *given["words"]])
    return "\n".join([*lines, command]) + "\n"


def _key_words(given: dict[str, Any]) -> str:
    if given["key_file"] is not None:
        return f'"$(cat {shlex.quote(str(given["key_file"]))})"'
    if given["gateway_key"] is not None:
        return "KEY  # the one of --key"
    return f'"${KEY_VARIABLE}"' if os.environ.get(KEY_VARIABLE) else NO_KEY
