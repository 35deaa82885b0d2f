"""``inspect ROW.kvb``: the header of a row file, and where it is damaged."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cache import tokens as token_bytes
from native import load_backend
from native.errors import NativeError
from native.params import ModelParams
from runtime import errors
from runtime.client.cache.row_files import RowReport, check_file
from runtime.settings.sizes import format_size


def inspect_row(file: Path, model: Path | None, *, as_json: bool) -> int:
    """Print the report; returns the exit code. ``model``: its vocabulary turns tokens into text."""
    try:
        # A file that was moved, for instance to quarantine, may have any name.
        report = check_file(str(file), by_name=False)
    except OSError as error:
        raise errors.LlamaActorsError(
            f"cannot read {file}: {error.strerror}; name a file *.kvb of a cache"
        ) from error
    plain = report.to_dict()
    if model is not None:
        plain["text"] = _text(model, report)
    if as_json:
        sys.stdout.write(json.dumps(plain, indent=2, default=str) + "\n")
    else:
        sys.stdout.write(describe(report.to_dict()))
        if "text" in plain:
            sys.stdout.write(f"text        {plain['text']!r}\n")
    return 0 if report.damage is None else 1


def describe(row: Mapping[str, Any]) -> str:
    """A report, as its ``to_dict`` returns it, as lines of text."""
    lines = [("file", f"{row['place']}, {format_size(row['bytes'])}")]
    if "payload_bytes" in row:  # else its head cannot be read
        meta, start, n = row["meta"], row["start"], row["tokens"]
        lines += [
            ("key", row["key"]),
            ("parent", row["parent"]),
            ("namespace", row["namespace"]),
            ("model", str(meta.get("model", "not recorded"))),
            ("tokens", f"{n}, from {start} up to {start + n} of the prompt"),
            ("KV state", f"{format_size(row['payload_bytes'])}, at byte {row['head_bytes']}"),
            ("saved", f"{row['reason']}, {_when(row['created_unix_s'])}"),
        ]
        others = {key: value for key, value in meta.items() if key != "model"}
        if others:
            lines.append(("metadata", json.dumps(others, default=str)))
    if row["damage"] is not None:
        lines.append(("DAMAGED", f"at {row['damaged_at']}: {row['damage']}"))
    elif row["proved"]:
        lines.append(("digest", "ok, every byte was checked"))
    else:
        lines.append(("digest", "none; the head is ok"))
    return "".join(f"{name:<11} {words}\n" for name, words in lines)


def _when(unix_s: float) -> str:
    if not unix_s:
        return "at an unknown time"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix_s))


def _text(model: Path, report: RowReport) -> str:
    """The row's own tokens as text, if this is the vocabulary that they are of."""
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
            f"{model} has no such tokens ({error}); the row is of another model"
        ) from error
    finally:
        backend.close()
    return words.decode("utf-8", "replace")
