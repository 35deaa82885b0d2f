"""The gateway that a program is to use: one that is named, that of the node here, or a new one."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from runtime import errors
from runtime.cli.launch.programs import Target
from runtime.remote.address import GatewayAddress, address_from, key_from, parse_address
from runtime.remote.connection import Requests
from runtime.remote.failures import not_ours
from runtime.settings.ports import URL_VARIABLE

if TYPE_CHECKING:
    from runtime.settings.config import RuntimeConfig

HOST: Final = "127.0.0.1"
HOW: Final = (
    "start one with `llama-actors serve --gateway 127.0.0.1:8080 --model ID=PATH --n-ctx 65536`, "
    "name one with --url, or start one for this program alone with --serve ID=PATH"
)
_ANY: Final = {"0.0.0.0": HOST, "[::]": "[::1]"}  # noqa: S104 - they are replaced


def gateway_of(given: Mapping[str, Any]) -> GatewayAddress:
    """The gateway that the parameters name, else that of this machine's node.

    Raises GatewayUnreachable where there is none.
    """
    is_variable = given.get("admin_port") is None and os.environ.get(URL_VARIABLE)
    address = address_from(given) if given.get("url") is not None or is_variable else None
    if address is not None:
        if address.socket:
            raise errors.ConfigError("--url", "names a socket, which these programs cannot use")
        return address
    listens, has_tls = _listens(given)
    for one in listens:
        host, colon, port = one.rpartition(":")
        if colon and port.isdigit() and not one.startswith("unix:"):
            scheme = "https" if has_tls else "http"
            url = f"{scheme}://{_ANY.get(host, host)}:{port}"
            return parse_address(url, key_from(given), given.get("ca"))
    what = f"it listens at {', '.join(listens)} alone, which these programs cannot use"
    raise errors.GatewayUnreachable(f"the node has no gateway for them: {what}; {HOW}")


def _listens(given: Mapping[str, Any]) -> tuple[list[str], bool]:
    """Where the gateway of this machine's node listens, and whether it has a certificate."""
    from runtime.node import Node

    try:
        with Node.attach(given.get("admin_port")) as node:
            reports = node.reports()
    except errors.NodeNotRunning as error:
        raise errors.GatewayUnreachable(f"no node runs on port {error.port}; {HOW}") from None
    for actor, report in reports.items():
        if actor.startswith("http:") and report is not None and report.get("listen"):
            return list(report["listen"]), bool(report.get("tls"))
    raise errors.GatewayUnreachable(f"the node that runs here has no gateway; {HOW}")


def target_of(address: GatewayAddress, model: str | None) -> Target:
    """The gateway, and the model of that name, else the only one that it has."""
    found = Requests(address).get("/v1/models")
    try:
        listed = {str(one["id"]): one for one in found["data"]}
        ids = [name for name, one in listed.items() if "root" not in one]
    except (KeyError, TypeError):
        raise not_ours(address, "its models cannot be read") from None
    chosen = _chosen(model, ids)
    n_ctx = listed.get(chosen, {}).get("context_length")
    return Target(
        address.url,
        chosen,
        n_ctx if isinstance(n_ctx, int) else None,
        bool(address.key),
        address.ca_file,
    )


def _chosen(model: str | None, ids: list[str]) -> str:
    if model is not None:
        return model
    if not ids:
        raise errors.ModelUnknown(
            "", "no model is loaded there; load one with `llama-actors load ID=PATH --n-ctx 65536`"
        )
    if len(ids) > 1:
        raise errors.InvalidRequest(f"there are several models: name one with --model ({ids[0]}, "
                                    f"{', '.join(ids[1:])})")  # fmt: skip
    return ids[0]


@contextlib.contextmanager
def served(model: str, n_ctx: int | None) -> Iterator[GatewayAddress]:
    """A node with a gateway and this model, which lives as long as the program that is started.

    It ends at an error; else the program that replaces this one holds what keeps it running.
    """
    from native.model_params import ModelParams
    from runtime.cli.progress import ProgressLine
    from runtime.launch import start
    from runtime.node import Node
    from runtime.settings.config import RuntimeConfig, parse_model_argument
    from runtime.settings.gateway import GatewaySettings, Listen
    from supervision.ports import free_port

    name, config = parse_model_argument(model)
    if n_ctx is not None:
        config = dataclasses.replace(config, params=ModelParams(n_ctx=n_ctx))
    admin, port = free_port(), free_port()
    settings: RuntimeConfig = RuntimeConfig(
        admin_port=admin, gateway=GatewaySettings(listen=(Listen(HOST, port),))
    )
    child = start.spawn(settings)
    try:
        with Node.attach(admin) as node, ProgressLine(f"loading {name}") as line:
            node.load(name, config, progress=line.share)
        child.keep_over_exec()
        yield parse_address(f"http://{HOST}:{port}")
    except BaseException:
        child.end()
        raise
