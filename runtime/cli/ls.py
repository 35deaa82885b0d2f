"""``ls``: the models on this machine: fetched ones, those of a folder, and Ollama's.

Reads records, manifests and the beginning of each file's header; asks no node and no hub. `models`
lists what a node has loaded.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from runtime.cli.model_names import catalog_of, models_dir_option
from runtime.cli.options import json_option, node_command
from runtime.cli.table import Column, write_table
from runtime.settings.sizes import format_size

if TYPE_CHECKING:
    from runtime.catalog.catalog import Known

_COLUMNS = (
    Column("NAME", 32), Column("SIZE", 10, right=True), Column("QUANTISATION", 12),
    Column("FROM", 8), Column("PATH"),
)  # fmt: skip


@node_command()
@models_dir_option()
@json_option("print a JSON list")
def command(*, as_json: bool, **given: Any) -> int:
    catalog = catalog_of(given)
    found = catalog.all()
    if as_json:
        sys.stdout.write(json.dumps([plain_model(one) for one in found], indent=2) + "\n")
    elif found:
        write_table(_COLUMNS, [_cells(one) for one in found])
    else:
        sys.stderr.write(
            "there is none yet; `llama-actors pull ORG/REPO:TAG` fetches one, --models-dir names a "
            "folder of GGUF files, and the model `demo` comes along\n"
        )
    for one in catalog.store.unfinished():
        sys.stderr.write(
            f"note: {format_size(one.n_bytes)} of {one.repo} are not whole yet; `pull` continues, "
            f"`rm {one.repo}` removes them\n"
        )
    return 0


def plain_model(known: Known) -> dict[str, Any]:
    """A model as ``--json`` prints it."""
    from runtime.catalog.describe import header_of

    header = header_of(known.path)
    plain: dict[str, Any] = {
        "name": known.name,
        "id": known.id,
        "from": known.source.value,
        "path": str(known.path),
        "n_bytes": known.n_bytes,
        "modified": known.mtime,
        "quantisation": header.quantisation or None,
        "architecture": header.architecture or None,
        "missing": list(known.missing),
    }
    stored = known.stored
    if stored is not None:
        plain |= {
            "repo": stored.repo,
            "revision": stored.revision,
            "endpoint": stored.endpoint,
            "digests": {one.path: one.digest for one in stored.files},
        }
    elif known.digest:
        plain["digests"] = {known.path.name: known.digest}
    return plain


def _cells(known: Known) -> tuple[str, ...]:
    from runtime.catalog.describe import header_of

    quantisation = header_of(known.path).quantisation or "unknown"
    if known.missing:
        quantisation = "incomplete"
    return (
        known.name,
        format_size(known.n_bytes),
        quantisation,
        known.source.value,
        str(known.path),
    )
