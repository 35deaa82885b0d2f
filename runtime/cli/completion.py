"""``completion``: the script that makes a shell complete commands, options and model ids."""

from __future__ import annotations

import sys

import click

from runtime.cli.main import COMPLETE_VARIABLE, SCRIPT
from runtime.cli.options import node_command

_HOW = """\b
bash: llama-actors completion bash >> ~/.bashrc
zsh:  llama-actors completion zsh >> ~/.zshrc, after compinit
fish: llama-actors completion fish > ~/.config/fish/completions/llama-actors.fish
"""


@node_command(epilog=_HOW)
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
def command(shell: str) -> int:
    from click.shell_completion import ShellComplete, get_completion_class

    from runtime.cli.commands import program

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for {shell}")
    completer = kind(program, {}, SCRIPT, COMPLETE_VARIABLE)
    # Not bash's own `source`: it starts a bash to check its version.
    sys.stdout.write(ShellComplete.source(completer))
    return 0
