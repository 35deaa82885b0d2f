"""``inspect FILE``: what one row file says of itself, and where it is damaged.

A GGUF model is explained by ``runtime.cli.inspect_model``.

Never prints what the prompt said, unless ``--text`` names a model whose vocabulary can read it.
Exit codes: 0 the row is whole, 1 it is damaged or cannot be read, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from cache import tokens as token_bytes
from native import load_backend
from native.errors import NativeError
from native.params import ModelParams
from runtime import errors
from runtime.cli.cache.row_files import RowReport, check_file
from runtime.cli.load_flags import add_load_flags, params_from
from runtime.settings.sizes import format_size
from runtime.settings.user_paths import path_flag


def add_inspect(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``inspect``."""
    command.add_argument("file", type=path_flag, metavar="FILE")
    command.add_argument(
        "--text",
        type=path_flag,
        metavar="GGUF",
        help="print the tokens as text, by this model's words",
    )
    command.add_argument("--json", action="store_true", help="print one JSON object")
    add_load_flags(command)
    command.set_defaults(run=inspect_command)


def inspect_command(arguments: argparse.Namespace) -> int:
    from runtime.cli.inspect_model import inspect_model, is_model

    if is_model(arguments.file):
        params = params_from(arguments, "inspect")
        return inspect_model(arguments.file, params, as_json=arguments.json)
    try:
        # A file that was moved, for instance to quarantine, may have any name.
        report = check_file(str(arguments.file), by_name=False)
    except OSError as error:
        raise errors.LlamaActorsError(
            f"cannot read {arguments.file}: {error.strerror}; name a file *.kvb of a cache"
        ) from error
    plain = report.to_dict()
    if arguments.text is not None:
        plain["text"] = _text(arguments.text, report)
    if arguments.json:
        sys.stdout.write(json.dumps(plain, indent=2, default=str) + "\n")
    else:
        sys.stdout.write(describe(report))
        if "text" in plain:
            sys.stdout.write(f"text        {plain['text']!r}\n")
    return 0 if report.damage is None else 1


def describe(report: RowReport) -> str:
    """The report in lines for people."""
    lines = [("file", f"{report.place}, {format_size(report.nbytes)}")]
    header = report.header
    if header is not None:
        end = header.start + header.n_tokens
        lines += [
            ("key", header.key.hex()),
            ("parent", header.parent.hex()),
            ("namespace", header.root.hex()),
            ("model", str(report.meta.get("model", "not said"))),
            ("tokens", f"{header.n_tokens}, from {header.start} up to {end} of the prompt"),
            ("KV state", f"{format_size(header.payload_bytes)}, at byte {header.payload_offset}"),
            ("saved", f"{header.reason.name.lower()}, {_when(header.created_unix_s)}"),
        ]
        others = {key: value for key, value in report.meta.items() if key != "model"}
        if others:
            lines.append(("metadata", json.dumps(others, default=str)))
    if report.damage is not None:
        lines.append(("DAMAGED", f"at {report.where}: {report.damage}"))
    elif report.is_proved:
        lines.append(("digest", "ok, every byte was checked"))
    else:
        lines.append(("digest", "none; the head is ok"))
    return "".join(f"{name:<11} {words}\n" for name, words in lines)


def _when(unix_s: float) -> str:
    if not unix_s:
        return "at an unknown time"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix_s))


def _text(model: Path, report: RowReport) -> str:
    """The row's own tokens by a model's vocabulary; it cannot be checked to be the right one."""
    if not report.tokens:
        raise errors.LlamaActorsError("this file has no readable tokens, so there is no text")
    try:
        backend = load_backend("llama", model, ModelParams(n_ctx=256, n_threads=1))
    except NativeError as error:
        raise errors.LlamaActorsError(f"--text {model}: {error}") from error
    try:
        words = backend.detokenize(token_bytes.unpack(report.tokens), special=True)
    except NativeError as error:
        raise errors.LlamaActorsError(
            f"{model} does not know these tokens ({error}); the row is of another model"
        ) from error
    finally:
        backend.close()
    return words.decode("utf-8", "replace")
