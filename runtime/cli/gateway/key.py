"""``gateway key``: make a key. It is printed once; the file holds only its hash."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import click

from runtime.cli.options import USER_PATH, node_command
from runtime.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@node_command()
@click.argument("name")
@click.option(
    "--file", type=USER_PATH, required=True, help="the file of keys; made if it does not exist"
)
@click.option("--admin", is_flag=True, help="it may see and change the node")
@click.option("--model", "models", multiple=True, metavar="PATTERN", help="models that it may use")
def command(name: str, file: Path, admin: bool, models: tuple[str, ...]) -> int:
    from runtime.gateway.keys import BadKeys, keys_from, new_key

    if not _NAME.fullmatch(name):
        raise ConfigError("name", f"{name!r} must be letters, digits, - and _, at most 64")
    before = file.read_text(encoding="utf-8") if file.exists() else ""
    key, digest = new_key()
    lines = [f"[keys.{name}]", f'sha256 = "{digest}"']
    if admin:
        lines.append("admin = true")
    if models:
        lines.append(f"models = {list(models)!r}".replace("'", '"'))
    text = before + ("\n" if before else "") + "\n".join(lines) + "\n"
    try:
        keys_from(text)
    except BadKeys as error:
        raise ConfigError(str(file), str(error)) from error
    draft = file.with_name(f"{file.name}.new")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as out:
        out.write(text)
    draft.replace(file)
    sys.stdout.write(key + "\n")
    return 0
